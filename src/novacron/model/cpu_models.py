"""Which flags of a host's CPU each CPU model needs, so that what hardware would run is known before it is there. Pure.

As QEMU 7.2 has its models (`query-cpu-model-expansion`), in the words of /proc/cpuinfo; without what KVM gives to
guests on any host or keeps from them by itself (x2apic, tsc-deadline, svm, …). What a node runs it says itself, and
that counts; this is for nodes that are not yet as they will be. Bits that no host shows in /proc/cpuinfo (rdctl_no, …)
are needed all the same, so of a list of flags it is rather said that it does not run a model that it does.
"""

from __future__ import annotations

from collections.abc import Collection

SHOWN_AS = {"spec_ctrl": "ibrs", "amd_ssbd": "ssbd", "amd_stibp": "stibp"}
"""Flags that Linux shows under another name."""

_TABLE = """\
486 - +fpu +pse
486-v1 486
pentium 486 +apic +cx8 +de +mce +mmx +msr +tsc
pentium-v1 pentium
qemu32 pentium +cmov +fxsr +pae +pat +pge +pni +sep +sse +sse2
pentium2 qemu32 +mca +mtrr +pse36 -pni -sse -sse2
qemu32-v1 qemu32
pentium2-v1 pentium2
pentium3 pentium2 +sse
pentium3-v1 pentium3
kvm32 pentium3 +clflush +pni +sse2
kvm32-v1 kvm32
athlon pentium3 +3dnow +3dnowext +mmxext +sse2
coreduo kvm32 +nx +ss -pse36
athlon-v1 athlon
coreduo-v1 coreduo
Opteron_G1 kvm32 +lm +nx +syscall
Opteron_G1-v1 Opteron_G1
n270 coreduo +lahf_lm +movbe +ssse3
kvm64 Opteron_G1 +cx16
n270-v1 n270
kvm64-v1 kvm64
Conroe Opteron_G1 +lahf_lm +ssse3
qemu64 kvm64 +lahf_lm
Conroe-v1 Conroe
qemu64-v1 qemu64
Opteron_G2 qemu64
Opteron_G2-v1 qemu64
Penryn Conroe +cx16 +sse4_1
core2duo Conroe +cx16 +ss
Penryn-v1 Penryn
core2duo-v1 core2duo
Nehalem Penryn +popcnt +sse4_2
Nehalem-v1 Nehalem
Nehalem-v2 Nehalem +spec_ctrl
Opteron_G3 qemu64 +abm +misalignsse +popcnt +rdtscp +sse4a
Nehalem-IBRS Nehalem-v2
Opteron_G3-v1 Opteron_G3
Westmere Nehalem +aes +pclmulqdq
Westmere-v1 Westmere
Westmere-v2 Westmere +spec_ctrl
Westmere-IBRS Westmere-v2
phenom Opteron_G3 +3dnow +3dnowext +fxsr_opt +mmxext +pdpe1gb -misalignsse
phenom-v1 phenom
SandyBridge Westmere +avx +rdtscp +xsave +xsaveopt
SandyBridge-v1 SandyBridge
SandyBridge-v2 SandyBridge +spec_ctrl
SandyBridge-IBRS SandyBridge-v2
IvyBridge SandyBridge +erms +f16c +fsgsbase +rdrand +smep
IvyBridge-v1 IvyBridge
IvyBridge-v2 IvyBridge +spec_ctrl
IvyBridge-IBRS IvyBridge-v2
Opteron_G4 SandyBridge +3dnowprefetch +abm +fma4 +misalignsse +nrip_save +pdpe1gb +sse4a +xop -xsaveopt
Opteron_G4-v1 Opteron_G4
Opteron_G5 Opteron_G4 +f16c +fma +tbm
Opteron_G5-v1 Opteron_G5
Haswell-v2 IvyBridge +abm +avx2 +bmi1 +bmi2 +fma +invpcid +movbe +pcid
Haswell-noTSX Haswell-v2
Haswell-v4 Haswell-v2 +spec_ctrl
Haswell-noTSX-IBRS Haswell-v4
Haswell Haswell-v2 +hle +rtm
Haswell-v1 Haswell
Haswell-v3 Haswell +spec_ctrl
Haswell-IBRS Haswell-v3
Broadwell-v2 Haswell-v2 +3dnowprefetch +adx +rdseed +smap
Denverton-v2 IvyBridge-v2 +3dnowprefetch +arch_capabilities +clflushopt +movbe +pdpe1gb +rdctl_no +rdseed +sha_ni
  +skip_l1dfl_vmentry +smap +ssbd +xgetbv1 +xsavec -avx -f16c
Broadwell-noTSX Broadwell-v2
Denverton Denverton-v2 +mpx
Broadwell-v4 Broadwell-v2 +spec_ctrl
Denverton-v1 Denverton
Denverton-v3 Denverton-v2 +xsaves
Broadwell-noTSX-IBRS Broadwell-v4
Broadwell Broadwell-v2 +hle +rtm
Broadwell-v1 Broadwell
Broadwell-v3 Broadwell +spec_ctrl
Broadwell-IBRS Broadwell-v3
Skylake-Client-v3 Broadwell-v4 +xgetbv1 +xsavec
Skylake-Client-noTSX-IBRS Skylake-Client-v3
Skylake-Client Broadwell +xgetbv1 +xsavec
Skylake-Client-v1 Skylake-Client
Skylake-Client-v4 Skylake-Client-v3 +xsaves
Snowridge-v4 Denverton-v3 +cldemote +clwb +gfni +movdir64b +movdiri +umip -rdctl_no -skip_l1dfl_vmentry
Skylake-Client-v2 Skylake-Client +spec_ctrl
Skylake-Client-IBRS Skylake-Client-v2
KnightsMill Broadwell-v2 +avx512_4fmaps +avx512_4vnniw +avx512_vpopcntdq +avx512cd +avx512er +avx512f +avx512pf
  +pdpe1gb +ss -invpcid -pcid -smap
Snowridge-v2 Snowridge-v4 +core_capability +split_lock_detect -xsaves
KnightsMill-v1 KnightsMill
Dhyana Skylake-Client-v3 +clflushopt +fxsr_opt +ibpb +misalignsse +mmxext +nrip_save +osvw +pdpe1gb +sse4a +topoext
  -aes -erms -invpcid -pcid -pclmulqdq -spec_ctrl
Dhyana-v1 Dhyana
Snowridge Snowridge-v2 +mpx
Snowridge-v1 Snowridge
Snowridge-v3 Snowridge-v2 +xsaves
Dhyana-v2 Dhyana +xsaves
EPYC Dhyana +aes +pclmulqdq +sha_ni -ibpb
EPYC-v1 EPYC
EPYC-v2 EPYC +ibpb
EPYC-IBPB EPYC-v2
Skylake-Server-v3 Skylake-Client-v3 +avx512bw +avx512cd +avx512dq +avx512f +avx512vl +clwb +pdpe1gb +pku
Skylake-Server-v4 Skylake-Server-v3
Skylake-Server-noTSX-IBRS Skylake-Server-v3
Skylake-Server-v5 Skylake-Server-v3 +xsaves
Skylake-Server Skylake-Server-v3 +clflushopt +hle +rtm -spec_ctrl
Skylake-Server-v1 Skylake-Server
Skylake-Server-v2 Skylake-Server +spec_ctrl -clflushopt
Skylake-Server-IBRS Skylake-Server-v2
EPYC-v3 EPYC-v2 +clzero +perfctr_core +xsaveerptr +xsaves
Cascadelake-Server Skylake-Server +avx512_vnni +spec_ctrl +ssbd
Cascadelake-Server-v1 Cascadelake-Server
EPYC-Rome EPYC-v3 +amd_stibp +clwb +rdpid +umip +wbnoinvd
EPYC-Rome-v1 EPYC-Rome
Cascadelake-Server-v3 Cascadelake-Server +arch_capabilities +ibrs_all +mds_no +rdctl_no +skip_l1dfl_vmentry -hle -rtm
Cascadelake-Server-v4 Cascadelake-Server-v3
Cascadelake-Server-noTSX Cascadelake-Server-v3
Cascadelake-Server-v5 Cascadelake-Server-v3 +xsaves
EPYC-Rome-v2 EPYC-Rome +amd_ssbd +ibrs
Cascadelake-Server-v2 Cascadelake-Server-v3 +hle +rtm
Icelake-Server-v2 Cascadelake-Server +avx512_bitalg +avx512_vbmi2 +avx512_vpopcntdq +avx512vbmi +gfni +la57 +umip
  +vaes +vpclmulqdq +wbnoinvd -hle -rtm
Icelake-Server-noTSX Icelake-Server-v2
Cooperlake Cascadelake-Server-v2 +avx512_bf16 +pschange_mc_no +stibp +taa_no
Cooperlake-v1 Cooperlake
EPYC-Milan EPYC-Rome-v2 +erms +fsrm +invpcid +pcid +pku
Cooperlake-v2 Cooperlake +xsaves
EPYC-Milan-v1 EPYC-Milan
Icelake-Server Icelake-Server-v2 +hle +rtm
Icelake-Server-v1 Icelake-Server
Icelake-Server-v3 Icelake-Server-v2 +arch_capabilities +ibrs_all +mds_no +pschange_mc_no +rdctl_no +skip_l1dfl_vmentry
  +taa_no
Icelake-Server-v4 Icelake-Server-v3 +avx512ifma +fsrm +rdpid +sha_ni
Icelake-Server-v5 Icelake-Server-v4 +xsaves
Icelake-Server-v6 Icelake-Server-v5
"""
"""A model, the one it is told by (`-`: none), what it needs beside that, and what not."""


def flags_needed(model: str) -> frozenset[str] | None:
    """What a host needs to run it; None: that is not known."""
    return _NEEDS.get(model)


def known_models() -> Collection[str]:
    """Every model whose needs are known."""
    return _NEEDS.keys()


def models_run(flags: Collection[str]) -> frozenset[str]:
    """The models that a host with these flags runs, of those that are known."""
    has = {normal(flag) for flag in flags}
    has |= {flag for flag, shown in SHOWN_AS.items() if shown in has}
    return frozenset(model for model, needs in _NEEDS.items() if needs <= has)


def normal(flag: str) -> str:
    """A flag in one spelling: QEMU writes `sse4.1` and `avx512-bf16` where Linux writes `sse4_1` and `avx512_bf16`."""
    return flag.lower().replace("-", "_").replace(".", "_")


def _read(table: str) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {"-": frozenset()}
    for line in table.replace("\n  ", " ").splitlines():
        model, base, *changes = line.split()
        more = {change[1:] for change in changes if change[0] == "+"}
        less = {change[1:] for change in changes if change[0] == "-"}
        found[model] = (found[base] | more) - less
    del found["-"]
    return found


_NEEDS = _read(_TABLE)
