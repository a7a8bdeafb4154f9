"""The flags of /proc/cpuinfo, captured on real processors; words between those that count are left out."""

BASE = (
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ss ht "
    "syscall nx pdpe1gb rdtscp lm constant_tsc rep_good nopl xtopology nonstop_tsc cpuid pni pclmulqdq"
)
# Before Haswell: Ivy Bridge.
IVY_BRIDGE = f"{BASE} ssse3 cx16 pcid sse4_1 sse4_2 x2apic popcnt tsc_deadline_timer aes xsave avx f16c rdrand lahf_lm"
# AMD EPYC of family 25, model 1 (Zen 3), in a virtual machine.
ZEN_3 = (
    f"{BASE} ssse3 fma cx16 pcid sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand hypervisor lahf_lm "
    "cmp_legacy cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw topoext ssbd ibrs ibpb stibp vmmcall fsgsbase "
    "tsc_adjust bmi1 avx2 smep bmi2 erms invpcid rdseed adx smap clflushopt clwb sha_ni xsaveopt xsavec xgetbv1 "
    "xsaves clzero xsaveerptr wbnoinvd arat umip pku ospke vaes vpclmulqdq rdpid fsrm"
)
# AMD EPYC of the fourth generation (Zen 4).
ZEN_4 = (
    f"{BASE} ssse3 fma cx16 sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand lahf_lm bmi1 avx2 smep bmi2 "
    "erms invpcid cqm rdt_a avx512f avx512dq rdseed adx smap avx512ifma clflushopt clwb avx512cd sha_ni avx512bw "
    "avx512vl xsaveopt xsavec xgetbv1 xsaves cqm_llc avx512_bf16 clzero wbnoinvd avx512vbmi umip pku ospke "
    "avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni avx512_bitalg avx512_vpopcntdq la57 rdpid overflow_recov succor "
    "smca fsrm flush_l1d"
)
# Intel Xeon Gold 6154 (Skylake) and 6230R (Cascade Lake).
SKYLAKE_X = (
    f"{BASE} ssse3 sdbg fma cx16 sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand lahf_lm abm fsgsbase "
    "bmi1 hle avx2 smep bmi2 erms invpcid rtm cqm mpx rdt_a avx512f avx512dq rdseed adx smap clflushopt clwb "
    "intel_pt avx512cd avx512bw avx512vl xsaveopt xsavec xgetbv1 xsaves dtherm ida arat pln pts pku ospke md_clear "
    "flush_l1d"
)
CASCADE_LAKE = SKYLAKE_X.replace("pku ospke", "pku ospke avx512_vnni")
# Intel Xeon with the first AMX (Sapphire Rapids); the second as a virtual machine that hides AMX.
SAPPHIRE_RAPIDS = (
    f"{BASE} ssse3 sdbg fma cx16 sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand lahf_lm abm bmi1 avx2 "
    "smep bmi2 erms invpcid cqm rdt_a avx512f avx512dq rdseed adx smap avx512ifma clflushopt clwb intel_pt avx512cd "
    "sha_ni avx512bw avx512vl xsaveopt xsavec xgetbv1 xsaves split_lock_detect avx_vnni avx512_bf16 wbnoinvd "
    "avx512vbmi umip pku waitpkg avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq "
    "rdpid fsrm md_clear serialize tsxldtrk pconfig arch_lbr amx_bf16 avx512_fp16 amx_tile amx_int8 flush_l1d "
    "arch_capabilities"
)
SAPPHIRE_RAPIDS_GUEST = SAPPHIRE_RAPIDS.replace("amx_bf16 avx512_fp16 amx_tile amx_int8", "avx512_fp16")
# Intel Core of 2021 (Alder Lake) and of 2024 (Arrow Lake): no AVX-512.
ALDER_LAKE = (
    f"{BASE} ssse3 sdbg fma cx16 sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand lahf_lm abm bmi1 avx2 "
    "smep bmi2 erms invpcid rdseed adx smap clflushopt clwb intel_pt sha_ni xsaveopt xsavec xgetbv1 xsaves avx_vnni "
    "dtherm ida arat umip pku ospke waitpkg gfni vaes vpclmulqdq rdpid movdiri movdir64b fsrm md_clear serialize"
)
ARROW_LAKE = f"{ALDER_LAKE} avx_vnni_int8 avx_ne_convert"
# ARM: Raspberry Pi 4 and 5, Graviton 3.
PI_4 = "fp asimd evtstrm crc32 cpuid"
PI_5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
GRAVITON_3 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 "
    "sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg dcpodp svei8mm svebf16 i8mm bf16 dgh rng"
)


def cpuinfo(*cores: str) -> str:
    """A /proc/cpuinfo whose cores have these flags."""
    return "\n\n".join(_core(number, flags) for number, flags in enumerate(cores)) + "\n"


def _core(number: int, flags: str) -> str:
    if flags.startswith("fp "):
        return f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {flags}\nCPU implementer\t: 0x41"
    bugs = "bugs\t\t: sysret_ss_attrs spectre_v1"
    return f"processor\t: {number}\nvendor_id\t: GenuineIntel\ncore id\t\t: {number}\nflags\t\t: {flags}\n{bugs}"
