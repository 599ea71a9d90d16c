"""`novacron vm create` and `vm update`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from novacron.cli.complete import names
from novacron.cli.disk_spec import DISK_RULE, DRIVE_RULE, DiskType, DriveType, disk_in, media_in
from novacron.cli.ha_options import ha_of, survives
from novacron.cli.options import FILE, PAIR, SIZE, asks, prints, waits
from novacron.cli.placement_options import placement_of, wishes
from novacron.cli.session import Session
from novacron.cli.vm_follow import say, wait_for, warn
from novacron.cli.vm_spec import NIC_RULE, NicType, mebibytes, merged, nic_in, read_document

if TYPE_CHECKING:
    from novacron.client.vms import VmCreate

VM = click.argument("vm", metavar="VM", shell_complete=names("vms"))


def grows(function: Any) -> Any:
    """Options for how far it can grow while it runs."""
    function = click.option(
        "--max-memory", type=SIZE, metavar="SIZE", help="How far it can grow as it runs; counts from the next start."
    )(function)
    return click.option(
        "--max-vcpus", type=click.IntRange(min=0), help="How far it can grow as it runs; counts from the next start."
    )(function)


@click.command()
@click.argument("name")
@click.option("--image", required=True, metavar="IMAGE", shell_complete=names("images"), help="What it is made from.")
@click.option("--vcpus", type=click.IntRange(min=1), help="Virtual CPUs; default 1.")
@click.option("--memory", type=SIZE, metavar="SIZE", help="Memory, as in 512M or 2G; default 512M.")
@grows
@click.option("--root-disk", type=SIZE, metavar="SIZE", help="Size of the root disk; default: the image's own.")
@click.option("--root-pool", metavar="POOL", shell_complete=names("pools"), help="Where the root disk lies; default: "
              "the default pool.")  # fmt: skip
@click.option("--disk", "disks", type=DiskType(), metavar="DISK", multiple=True,
              help=f"One more disk: {DISK_RULE}. Repeatable.")  # fmt: skip
@click.option("--nic", "nics", type=NicType(), metavar="NIC", multiple=True,
              help=f"A network card: {NIC_RULE}. Repeatable; default: one on the user network.")  # fmt: skip
@click.option("--no-nic", is_flag=True, help="No network card at all.")
@click.option("--cloud-init", type=FILE, metavar="FILE", help="cloud-init user-data; - is stdin.")
@click.option("--cloud-init-network", type=FILE, metavar="FILE", help="cloud-init network-config.")
@click.option("--machine", type=click.Choice(["q35", "microvm"]), help="Virtual hardware; default q35.")
@click.option(
    "--firmware", type=click.Choice(["auto", "bios", "uefi"]), help="How it boots; default: as the image needs."
)
@click.option("--cmdline", default="", metavar="TEXT", help="Appended to the kernel's command line.")
@click.option("--cd", "media", type=DriveType(), metavar="DRIVE", multiple=True, shell_complete=names("images"),
              help=f"A CD-ROM drive with the ISO of an image in it: {DRIVE_RULE}. Repeatable.")  # fmt: skip
@click.option("--tpm", is_flag=True, help="Give it a TPM 2.0 of its own.")
@click.option("--secure-boot", is_flag=True, help="With --firmware uefi: start only what is signed.")
@click.option("--shared-memory", is_flag=True, help="It may be parked, for copies that share its memory.")
@click.option("--guest-agent", is_flag=True, help="Give it a channel for the guest agent.")
@click.option("--node", metavar="NODE", shell_complete=names("nodes"), help="Where; default: the scheduler chooses.")
@wishes
@survives
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Repeatable.")
@click.option("--description", default="", metavar="TEXT", help="For people.")
@click.option("--stopped", is_flag=True, help="Make it, do not start it.")
@click.option("--dry-run", is_flag=True, help="Only say where it would be put, and why not elsewhere.")
@waits("5m")
@prints
@asks
def create(session: Session, stopped: bool, dry_run: bool, wait: bool, timeout_s: float, **given: Any) -> None:
    """Make a VM from an image and start it.

    \b
    novacron vm create web-1 --image debian-12 --vcpus 2 --memory 2G \\
        --nic user,forward=22 --nic bridge=br0 --label tier=web --wait
    novacron vm create web-2 --image debian-12 --label tier=web --affinity apart,tier=web,over=zone --dry-run
    """
    from novacron.cli.vm_placement import show
    from novacron.client import placement_plans, vms
    from novacron.client.goals import vm_settles

    wish = _wish(given, stopped)
    with session.connect() as nova:
        if dry_run:
            show(session, nova.do(placement_plans.plan(wish)))
            return
        made = nova.do(vms.create(wish))
        warn(made.warnings)
        if wait:
            made = wait_for(nova, made.id, vm_settles("stopped" if stopped else "running"), timeout_s)
    say(session, made)


@click.command()
@VM
@click.option("--name", metavar="NAME", help="A new name.")
@click.option("--description", metavar="TEXT", help="A new description.")
@click.option("--vcpus", type=click.IntRange(min=1), help="At once as far as it can grow, else from the next start.")
@click.option("--memory", type=SIZE, metavar="SIZE", help="Likewise.")
@grows
@click.option("--tpm/--no-tpm", default=None, help="A TPM 2.0 of its own, from the next start.")
@click.option("--secure-boot/--no-secure-boot", default=None, help="Only signed software, from the next start.")
@click.option("--label", "labels", type=PAIR, metavar="KEY=VALUE", multiple=True, help="Add or replace. Repeatable.")
@click.option("--remove-label", metavar="KEY", multiple=True, help="Take it away. Repeatable.")
@wishes
@survives
@click.option("--no-wishes", is_flag=True, help="Forget all that was wished of its node.")
@prints
@asks
def update(session: Session, vm: str, labels: tuple[tuple[str, str], ...], remove_label: tuple[str, ...],
           no_wishes: bool, **given: Any) -> None:  # fmt: skip
    """Change a VM. What is wished of its node is replaced as a whole, and counts when it is placed again."""
    import msgspec

    from novacron.cli.edit import edit
    from novacron.client import vms
    from novacron.client.placement import Placement

    wished, ha = placement_of(given) or (Placement() if no_wishes else None), ha_of(given)
    changes = {key: value for key, value in {**given, "placement": wished, "ha": ha}.items() if value is not None}
    for option in ("memory", "max_memory"):
        if option in changes:
            changes[f"{option}_mib"] = mebibytes(changes.pop(option), f"--{option.replace('_', '-')}")
    if not changes and not labels and not remove_label:
        raise click.UsageError("nothing to change was given")
    change = vms.VmUpdate(**changes)
    with session.connect() as nova:
        if labels or remove_label:
            changed = edit(
                nova,
                vms.get(vm),
                lambda now: vms.update(
                    vm,
                    msgspec.structs.replace(change, labels=merged(now.labels, labels, remove_label)),
                    revision=now.revision,
                ),
            )
        else:
            changed = nova.do(vms.update(vm, change))
    warn(changed.warnings)
    say(session, changed, "changed")


def _wish(given: dict[str, Any], stopped: bool) -> VmCreate:
    """The options of `create` as the body that is sent."""
    from novacron.client import vms

    if given["no_nic"] and given["nics"]:
        raise click.UsageError("--no-nic and --nic exclude each other")
    more: dict[str, Any] = {
        key: given[key] for key in ("vcpus", "max_vcpus", "machine", "firmware", "node") if given[key] is not None
    }
    for option in ("memory", "max_memory"):
        if given[option] is not None:
            more[f"{option}_mib"] = mebibytes(given[option], f"--{option.replace('_', '-')}")
    if given["nics"] or given["no_nic"]:
        more["nics"] = [nic_in(nic) for nic in given["nics"]]
    if stopped:
        more["desired"] = "stopped"
    if wished := placement_of(given):
        more["placement"] = wished
    if ha := ha_of(given):
        more["ha"] = ha
    user_data = read_document(given["cloud_init"], "--cloud-init")
    network = read_document(given["cloud_init_network"], "--cloud-init-network")
    return vms.VmCreate(
        name=given["name"],
        image=given["image"],
        description=given["description"],
        labels=dict(given["labels"]),
        kernel_cmdline=given["cmdline"],
        root_disk_bytes=given["root_disk"],
        root_pool=given["root_pool"],
        disks=tuple(disk_in(disk) for disk in given["disks"]),
        cloud_init=vms.CloudInitIn(user_data=user_data, network_config=network) if user_data or network else None,
        guest_agent=given["guest_agent"],
        media=tuple(media_in(drive) for drive in given["media"]),
        tpm=given["tpm"],
        secure_boot=given["secure_boot"],
        shared_memory=given["shared_memory"],
        **more,
    )
