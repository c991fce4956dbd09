/* What compiled kernels need of a C library: scratch memory, and the question whether this CPU can run them.

   Numba frees arrays by their reference counts, which begin with the structure below. Where memory is missing,
   NRT_MemInfo_alloc_aligned returns 0, and the kernel returns a status that becomes a MemoryError. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#ifdef __APPLE__
#define ASM_PREFIX "_"
#else
#define ASM_PREFIX ""
#endif
#define NONE (-2) /* the status of a function that returns None */

typedef struct {
    size_t references;
    void *destructor, *destructor_info, *data;
    size_t size;
    void *external;
} MemInfo;

void *NRT_MemInfo_alloc_aligned(size_t size, uint32_t align) {
    size_t room = sizeof(MemInfo) + 2 * (size_t)align;
    char *start = size <= SIZE_MAX - room ? malloc(room + size) : 0;
    if (!start) return 0;
    uintptr_t data = (uintptr_t)start + sizeof(MemInfo) + align - 1;
    MemInfo *info = (MemInfo *)start;
    *info = (MemInfo){1, 0, 0, (void *)(data - data % align), size, 0};
    return info;
}

void NRT_MemInfo_call_dtor(void *info) { free(info); }

/* The features that LEVEL.json's name promises; the operating system must save the registers, too. */
#if defined(__x86_64__) || defined(_M_X64)
static uint64_t extended_control_register(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

EXPORT int attnarray_cpu_level(void) {
    const uint32_t v2 = 1u << 0 | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23;    /* SSE3 ... POPCNT, leaf 1 ECX */
    const uint32_t v3 = 1u << 12 | 1u << 22 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 29;  /* FMA MOVBE XSAVE AVX F16C */
    const uint32_t v3_7 = 1u << 3 | 1u << 5 | 1u << 8;                                    /* BMI AVX2 BMI2, leaf 7 EBX */
    const uint32_t v4_7 = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;           /* AVX512 F DQ CD BW VL */
    uint32_t a, b, c, d, b7 = 0, lzcnt = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & v2) != v2) return 1;
    uint32_t first = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) b7 = b;
    if (__get_cpuid(0x80000001u, &a, &b, &c, &d)) lzcnt = c >> 5 & 1;
    if ((first & v3) != v3 || (b7 & v3_7) != v3_7 || !lzcnt) return 2;
    uint64_t saved = extended_control_register();
    if ((saved & 0x6) != 0x6) return 2;
    return (b7 & v4_7) == v4_7 && (saved & 0xe6) == 0xe6 ? 4 : 3;
}

/* AVX512-BF16, which no level promises: leaf 7, subleaf 1, EAX. */
EXPORT int attnarray_multiplies_bfloat16(void) {
    uint32_t a, b, c, d;
    if (attnarray_cpu_level() < 4 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || a < 1) return 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}
#else
EXPORT int attnarray_cpu_level(void) { return 0; }
EXPORT int attnarray_multiplies_bfloat16(void) { return 0; }
#endif

EXPORT int attnarray_runs_here(void) { return attnarray_cpu_level() >= LEVEL; }

