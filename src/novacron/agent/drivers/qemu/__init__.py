"""The QEMU driver: machines as QEMU processes, spoken to over QMP, moved by pre-copy migration."""

from novacron.agent.drivers.qemu.driver import QemuDriver

__all__ = ["QemuDriver"]
