"""The client's structs and the wire's models are the same words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from novacron.client import (
    bulk_migrations,
    devices,
    fencing,
    ha,
    images,
    migration_policies,
    migrations,
    networks,
    nodes,
    placement,
    placement_plans,
    pools,
    rehearsals,
    schedules,
    security_groups,
    servers,
    snapshots,
    templates,
    vms,
    volumes,
)
from novacron.wire.rest import bulk_migrations as wire_bulk
from novacron.wire.rest import devices as wire_devices
from novacron.wire.rest import fencing as wire_fencing
from novacron.wire.rest import ha as wire_ha
from novacron.wire.rest import images as wire_images
from novacron.wire.rest import migration_plans as wire_plans
from novacron.wire.rest import migrations as wire_migrations
from novacron.wire.rest import networks as wire_networks
from novacron.wire.rest import node_identities as wire_identities
from novacron.wire.rest import nodes as wire_nodes
from novacron.wire.rest import placement as wire_placement
from novacron.wire.rest import policies as wire_policies
from novacron.wire.rest import pools as wire_pools
from novacron.wire.rest import rehearsals as wire_rehearsals
from novacron.wire.rest import security_groups as wire_groups
from novacron.wire.rest import servers as wire_servers
from novacron.wire.rest import snapshots as wire_snapshots
from novacron.wire.rest import templates as wire_templates
from novacron.wire.rest import vms as wire_vms
from novacron.wire.rest import volumes as wire_volumes
from novacron.wire.rest.common import ReasonOut, VmProblem
from tests.client.control_room import COMPLETED, image, migration, network, node, pool, security_group, vm, volume

SENT: list[tuple[type[msgspec.Struct], type[BaseModel]]] = [
    (vms.VmCreate, wire_vms.VmCreate),
    (vms.VmUpdate, wire_vms.VmUpdate),
    (devices.NicIn, wire_devices.NicIn),
    (devices.NicUpdate, wire_devices.NicUpdate),
    (devices.ForwardIn, wire_devices.ForwardIn),
    (devices.DiskIn, wire_devices.DiskIn),
    (devices.QosIn, wire_devices.QosIn),
    (pools.PoolCreate, wire_pools.PoolCreate),
    (pools.PoolUpdate, wire_pools.PoolUpdate),
    (volumes.VolumeCreate, wire_volumes.VolumeCreate),
    (volumes.VolumeUpdate, wire_volumes.VolumeUpdate),
    (devices.MediaIn, wire_devices.MediaIn),
    (devices.MediaUpdate, wire_devices.MediaUpdate),
    (vms.CloudInitIn, wire_vms.CloudInitIn),
    (vms.StopRequest, wire_vms.StopRequest),
    (vms.CopiesCreate, wire_vms.CopiesCreate),
    (nodes.NodeUpdate, wire_nodes.NodeUpdate),
    (nodes.NodeTokenCreate, wire_identities.NodeTokenCreate),
    (placement.Placement, wire_placement.Placement),
    (ha.Ha, wire_ha.Ha),
    (fencing.FenceDeviceSet, wire_fencing.FenceDeviceSet),
    (fencing.ConfirmOff, wire_fencing.ConfirmOff),
    (fencing.HoldCreate, wire_fencing.HoldCreate),
    (placement.Taint, wire_placement.Taint),
    (placement.Toleration, wire_placement.Toleration),
    (placement.VmRule, wire_placement.VmRule),
    (placement.NodeRule, wire_placement.NodeRule),
    (nodes.CpuChanges, wire_nodes.CpuChanges),
    (migrations.BandwidthChange, wire_migrations.BandwidthChange),
    (nodes.LinkProbeCreate, wire_nodes.LinkProbeCreate),
    (nodes.NodeAfter, wire_nodes.NodeAfter),
    (images.ImageCreate, wire_images.ImageCreate),
    (images.ImageUpdate, wire_images.ImageUpdate),
    (images.UploadCreate, wire_images.UploadCreate),
    (images.UploadFinish, wire_images.UploadFinish),
    (images.ImageImport, wire_images.ImageImport),
    (migrations.MigrationCreate, wire_migrations.MigrationCreate),
    (migrations.Goals, wire_migrations.Goals),
    (bulk_migrations.BulkMigrationCreate, wire_bulk.BulkMigrationCreate),
    (rehearsals.RehearsalCreate, wire_rehearsals.RehearsalCreate),
    (migration_policies.PolicyCreate, wire_policies.PolicyCreate),
    (migration_policies.PolicyUpdate, wire_policies.PolicyUpdate),
    (migration_policies.Window, wire_policies.Window),
    (templates.TemplateCreate, wire_templates.TemplateCreate),
    (templates.VersionCreate, wire_templates.VersionCreate),
    (templates.ParameterIn, wire_templates.ParameterIn),
    (templates.TemplateUpdate, wire_templates.TemplateUpdate),
    (templates.Instantiate, wire_templates.Instantiate),
    (snapshots.SnapshotCreate, wire_snapshots.SnapshotCreate),
    (snapshots.SnapshotUpdate, wire_snapshots.SnapshotUpdate),
    (snapshots.RevertRequest, wire_snapshots.RevertRequest),
    (snapshots.ExportRequest, wire_snapshots.ExportRequest),
    (schedules.ScheduleCreate, wire_snapshots.ScheduleCreate),
    (schedules.ScheduleUpdate, wire_snapshots.ScheduleUpdate),
]
ANSWERED: list[tuple[type[msgspec.Struct], type[BaseModel]]] = [
    (fencing.FenceDevice, wire_fencing.FenceDevice),
    (fencing.Reading, wire_fencing.FenceDeviceReading),
    (fencing.ConfirmedOff, wire_fencing.ConfirmedOff),
    (fencing.OnHold, wire_fencing.OnHold),
    (fencing.HaNode, wire_fencing.HaNode),
    (fencing.HaStatus, wire_fencing.HaStatus),
    (vms.Vm, wire_vms.Vm),
    (vms.Task, wire_vms.TaskOut),
    (devices.Disk, wire_devices.DiskOut),
    (devices.Qos, wire_devices.QosOut),
    (pools.Pool, wire_pools.Pool),
    (pools.Reach, wire_pools.ReachOut),
    (volumes.Volume, wire_volumes.Volume),
    (devices.Media, wire_devices.MediaOut),
    (vms.Waiting, ReasonOut),
    (devices.Nic, wire_devices.NicOut),
    (devices.Forward, wire_devices.ForwardOut),
    (vms.Endpoint, wire_vms.EndpointOut),
    (vms.ConsoleLog, wire_vms.ConsoleLog),
    (vms.VmList, wire_vms.VmList),
    (vms.Problem, VmProblem),
    (nodes.Node, wire_nodes.Node),
    (placement_plans.PlacementPlan, wire_placement.PlacementPlan),
    (placement_plans.NodeFit, wire_placement.NodeFit),
    (nodes.Facts, wire_nodes.FactsOut),
    (nodes.CpuBaseline, wire_nodes.CpuBaseline),
    (nodes.NodeToken, wire_identities.NodeToken),
    (nodes.NodeRevoked, wire_identities.NodeRevoked),
    (nodes.Baseline, wire_nodes.BaselineOut),
    (nodes.BoundVm, wire_nodes.BoundVm),
    (nodes.CpuBaselinePlan, wire_nodes.CpuBaselinePlan),
    (nodes.VmAfter, wire_nodes.VmAfter),
    (nodes.Link, wire_nodes.Link),
    (nodes.LinkList, wire_nodes.LinkList),
    (nodes.Usage, wire_nodes.UsageOut),
    (nodes.Driver, wire_nodes.DriverOut),
    (nodes.Accelerator, wire_nodes.AcceleratorOut),
    (servers.Server, wire_servers.Server),
    (images.Image, wire_images.Image),
    (images.ImageFile, wire_images.ImageFileOut),
    (images.UploadState, wire_images.Upload),
    (images.FileTask, wire_images.FileTaskOut),
    (images.Hints, wire_images.HintsOut),
    (networks.Network, wire_networks.Network),
    (security_groups.SecurityGroup, wire_groups.SecurityGroup),
    (migrations.Migration, wire_migrations.Migration),
    (bulk_migrations.BulkMigration, wire_bulk.BulkMigration),
    (bulk_migrations.BulkMigrationPlan, wire_bulk.BulkMigrationPlan),
    (bulk_migrations.Entry, wire_bulk.EntryOut),
    (bulk_migrations.Forecast, wire_bulk.ForecastOut),
    (bulk_migrations.Load, wire_bulk.LoadOut),
    (bulk_migrations.NodeLossPlan, wire_bulk.NodeLossPlan),
    (bulk_migrations.Restart, wire_bulk.RestartOut),
    (rehearsals.Rehearsal, wire_rehearsals.Rehearsal),
    (rehearsals.RehearsalFigures, wire_rehearsals.RehearsalFiguresOut),
    (templates.Template, wire_templates.Template),
    (templates.Version, wire_templates.VersionOut),
    (templates.Parameter, wire_templates.ParameterOut),
    (migrations.KeptCopies, wire_migrations.KeptCopiesOut),
    (migrations.Progress, wire_migrations.ProgressOut),
    (migrations.Figures, wire_migrations.FiguresOut),
    (migrations.Prediction, wire_migrations.PredictionOut),
    (migrations.PredictionError, wire_migrations.PredictionErrorOut),
    (migrations.Range, wire_migrations.RangeOut),
    (migrations.Measurement, wire_migrations.MeasurementOut),
    (migrations.MigrationPlan, wire_plans.MigrationPlan),
    (migrations.NodePlan, wire_plans.NodePlan),
    (migrations.GoalsInForce, wire_plans.GoalsOut),
    (migrations.Reason, ReasonOut),
    (migration_policies.Policy, wire_policies.Policy),
    (snapshots.Snapshot, wire_snapshots.Snapshot),
    (schedules.Schedule, wire_snapshots.Schedule),
]


@pytest.mark.parametrize(("ours", "theirs"), SENT + ANSWERED, ids=lambda kind: kind.__name__)
def test_the_fields_are_the_same(ours: type[msgspec.Struct], theirs: type[BaseModel]) -> None:
    assert set(ours.__struct_fields__) == set(theirs.model_fields)


@pytest.mark.parametrize(("ours", "theirs"), SENT, ids=lambda kind: kind.__name__)
def test_what_need_not_be_given_is_the_same(ours: type[msgspec.Struct], theirs: type[BaseModel]) -> None:
    needed = {field.name for field in msgspec.structs.fields(ours) if field.required}
    assert needed == {name for name, field in theirs.model_fields.items() if field.is_required()}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (vms.Vm, vm()),
        (nodes.Node, node()),
        (pools.Pool, pool()),
        (volumes.Volume, volume()),
        (images.Image, image()),
        (networks.Network, network()),
        (security_groups.SecurityGroup, security_group()),
        (migrations.Migration, migration()),
        (migrations.Migration, migration(**COMPLETED, progress=None)),
    ],
)
def test_what_is_answered_is_read_whole(kind: type[Any], data: dict[str, Any]) -> None:
    assert msgspec.to_builtins(msgspec.convert(data, kind)) == data


@pytest.mark.parametrize(
    ("ask", "theirs"),
    [
        (vms.VmCreate(name="a", image="b"), wire_vms.VmCreate),
        (vms.VmCreate(name="a", image="b", nics=[], desired="stopped", disks=[devices.DiskIn(size_bytes=1 << 20)],
                      cloud_init=vms.CloudInitIn(user_data="#cloud-config\n"), machine="microvm", firmware="uefi",
                      node="n", labels={"a": "b"}, root_disk_bytes=1 << 30, guest_agent=True), wire_vms.VmCreate),
        (vms.VmUpdate(labels={}), wire_vms.VmUpdate),
        (vms.StopRequest(force=True, deadline_s=3.5), wire_vms.StopRequest),
        (devices.NicIn(network="overlay", net="web", addresses=["10.20.0.9"], security_groups=["a"],
                       anti_spoofing=False),
         wire_devices.NicIn),
        (devices.NicUpdate(security_groups=[]), wire_devices.NicUpdate),
        (networks.NetworkCreate(name="a", ipv4="10.20.0.0/24", dns=["9.9.9.9"]), wire_networks.NetworkCreate),
        (networks.NetworkUpdate(mode="nat"), wire_networks.NetworkUpdate),
        (security_groups.SecurityGroupCreate(name="a", rules=[security_groups.Rule(direction="in")]),
         wire_groups.SecurityGroupCreate),
        (nodes.NodeUpdate(cordoned=True), wire_nodes.NodeUpdate),
        (nodes.CpuChanges(nodes={"a": nodes.NodeAfter(cpu_flags=["sse2"]), "b": nodes.NodeAfter(gone=True)},
                          vms={"c": "EPYC"}), wire_nodes.CpuChanges),
        (pools.PoolCreate(name="a", driver="nfs", options={"path": "/a"}, shared=True), wire_pools.PoolCreate),
        (pools.PoolUpdate(image_cache_bytes=0), wire_pools.PoolUpdate),
        (volumes.VolumeCreate(name="a", volume="b", snapshot="c", qos=devices.QosIn(iops=1)),
         wire_volumes.VolumeCreate),
        (volumes.VolumeUpdate(size_bytes=1 << 30, qos=devices.QosIn(iops=1)), wire_volumes.VolumeUpdate),
        (devices.DiskIn(volume="a", boot_order=2), wire_devices.DiskIn),
        (images.ImageCreate(name="a", cmdline="console=ttyS0"), wire_images.ImageCreate),
        (migrations.MigrationCreate(vm="a", target_node="b", max_downtime_ms=5), wire_migrations.MigrationCreate),
        (rehearsals.RehearsalCreate(vm="a", target_node="b", keep_for_s=600.0), wire_rehearsals.RehearsalCreate),
        (bulk_migrations.BulkMigrationCreate(drain="a", targets={"b": "c"}, priorities={"b": 9}, may_pause=True),
         wire_bulk.BulkMigrationCreate),
    ],
)  # fmt: skip
def test_what_is_sent_is_taken(ask: msgspec.Struct, theirs: type[BaseModel]) -> None:
    given = msgspec.to_builtins(ask)
    taken = theirs.model_validate_json(msgspec.json.encode(ask))
    assert taken.model_dump(mode="json", exclude_unset=True) == given
