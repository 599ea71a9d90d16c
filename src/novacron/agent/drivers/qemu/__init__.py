"""The QEMU driver: machines as QEMU processes, spoken to over QMP, moved whole or in post-copy."""

from novacron.agent.drivers.qemu.driver import QemuDriver

__all__ = ["QemuDriver"]
