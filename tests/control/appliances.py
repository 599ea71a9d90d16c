"""OVA files for tests, good ones and hostile ones, written block by block."""

from __future__ import annotations

OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
 <References><File ovf:href="{disk}" ovf:id="file1"{file}/></References>
 <DiskSection><Info>disks</Info>{disks}</DiskSection>
 <VirtualSystem ovf:id="vm"><VirtualHardwareSection>
  <Item><rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits><rasd:ResourceType>3</rasd:ResourceType>
   <rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
  <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType>
   <rasd:VirtualQuantity>1536</rasd:VirtualQuantity></Item>
 </VirtualHardwareSection></VirtualSystem>
</Envelope>"""
DISK = '<Disk ovf:diskId="d1" ovf:fileRef="file1" ovf:capacity="1" ovf:format="x#streamOptimized"/>'


def ovf(disk: str = "disk1.vmdk", *, disks: str = DISK, file: str = "") -> bytes:
    return OVF.format(disk=disk, disks=disks, file=file).encode()


def member(name: bytes, content: bytes, *, kind: bytes = b"0", size: int | None = None, link: bytes = b"") -> bytes:
    """One member of a tar archive, with a right checksum whatever it says."""
    length = len(content) if size is None else size
    head = bytearray(512)
    head[:100] = name[:100].ljust(100, b"\0")
    head[100:108] = b"0000644\0"
    head[108:116] = head[116:124] = b"0000000\0"
    head[124:136] = f"{length:011o}\0".encode()
    head[136:148] = b"00000000000\0"
    head[148:156] = b" " * 8
    head[156:157] = kind
    head[157 : 157 + len(link)] = link
    head[257:265] = b"ustar\x0000"
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head) + content + bytes(-len(content) % 512)


def ova(*members: bytes) -> bytes:
    return b"".join(members) + bytes(1024)


def good(vmdk: bytes, **words: str) -> bytes:
    return ova(member(b"vm.ovf", ovf(**words)), member(b"disk1.vmdk", vmdk))
