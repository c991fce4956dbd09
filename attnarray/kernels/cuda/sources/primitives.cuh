// The primitives of kernels: memory, threads, copies, tensor cores. Two back ends with the same names.
//
// Compiled by NVRTC the names are PTX. Compiled by a C++ compiler they come from emulation.h, which runs the threads of a
// block as fibers and checks every access. Kernels therefore use only these names:
//   Global<T>, Shared<T>     pointers; read a value before use (`float v = x[i]`, never `auto v = x[i]`)
//   shared<T>(bytes)         the block's dynamic shared memory from a byte on; there is no other shared memory
//   sync_threads, sync_warp, any_thread, shuffle_xor
//   copy_async, commit_copies, wait_copies; barrier_*, copy_bulk (sm_90 and later)
//   load_matrices, multiply_add (sm_80 and later); multiply_group and its fences (wgmma, sm_90a)
// Kernels with products of fragments address shared memory by byte, as they compute the addresses of each lane.
#pragma once

using int64 = long long;
using uint32 = unsigned int;
using uint64 = unsigned long long;

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

#ifdef __CUDACC__

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define KERNEL_TOGETHER(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)  // on one multiprocessor
#define EXPORT(name)
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")

template <class T> using Global = T*;
template <class T> using Shared = T*;

extern __shared__ __align__(1024) unsigned char shared_bytes[];
template <class T> inline Shared<T> shared(int bytes) { return reinterpret_cast<T*>(shared_bytes + bytes); }
template <class T> inline uint32 shared_address(const T* p) { return uint32(__cvta_generic_to_shared(p)); }

inline void sync_threads() { __syncthreads(); }
inline void sync_warp() { __syncwarp(); }
inline bool any_thread(bool flag) { return __syncthreads_or(flag); }
inline bool any_lane(bool flag) { return __any_sync(0xffffffffu, flag); }
inline int min_over_lanes(int value) { return __reduce_min_sync(0xffffffffu, value); }  // uniform for the compiler
inline int max_over_lanes(int value) { return __reduce_max_sync(0xffffffffu, value); }
template <class T> inline T shuffle_xor(T value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }

template <class Real> inline Real infinity() { return Real(__int_as_float(0x7f800000)); }

inline float wide(float v) { return v; }
inline double wide(double v) { return v; }
inline float wide(float16 v) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits)); return f; }
inline float wide(bfloat16 v) { return __uint_as_float(uint32(v.bits) << 16); }
inline void narrow(float v, float& out) { out = v; }
inline void narrow(double v, double& out) { out = v; }
inline void narrow(float v, float16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }
inline void narrow(float v, bfloat16& out) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }

// 16 bytes at once: 16 / sizeof(T) numbers from index i on, which must be aligned to 16 bytes. Loads also from shared memory.
template <class T> inline void load16(Global<const T> p, int64 i, T (&out)[16 / sizeof(T)]) {
  *reinterpret_cast<int4*>(&out) = *reinterpret_cast<const int4*>(p + i);
}
template <class T> inline void store16(Global<T> p, int64 i, const T (&values)[16 / sizeof(T)]) {
  *reinterpret_cast<int4*>(p + i) = *reinterpret_cast<const int4*>(&values);
}
template <class T> inline bool is_aligned16(Global<T> p) { return (reinterpret_cast<uint64>(p) & 15) == 0; }

// Two adjacent numbers at once, at an even index.
inline uint32 pack(float low, float high, float16) {
  uint32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
inline uint32 pack(float low, float high, bfloat16) {
  uint32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <class T> inline void store_pair(Global<T> p, int64 i, float low, float high) {
  *reinterpret_cast<uint32*>(p + i) = pack(low, high, T());
}
template <> inline void store_pair<float>(Global<float> p, int64 i, float low, float high) {
  *reinterpret_cast<float2*>(p + i) = make_float2(low, high);
}

template <class T> inline void load_pair(Global<const T> p, int64 i, T (&pair)[2]) {
  *reinterpret_cast<uint32*>(&pair) = *reinterpret_cast<const uint32*>(p + i);
}
template <> inline void load_pair<float>(Global<const float> p, int64 i, float (&pair)[2]) {
  *reinterpret_cast<float2*>(&pair) = *reinterpret_cast<const float2*>(p + i);
}

inline uint32 float_bits(float v) { return __float_as_uint(v); }
inline float from_bits(uint32 v) { return __uint_as_float(v); }
// Round to tf32, 10 bits of mantissa, halves away from zero.
inline uint32 round_tf32(float v) { uint32 r; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(v)); return r; }
inline float exp2_fast(float v) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r; }  // 2 ulp

// 1 / v for normal numbers; in float to 1 ulp.
inline float reciprocal(float v) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r; }
// By Newton's method: a division would be a call, around which registers are spilled.
inline double reciprocal(double v) {
  double r;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(v));
  UNROLL for (int n = 0; n < 3; n++) r = fma(r, fma(-v, r, 1.0), r);
  return r;
}

// 1 / sqrt(v). In float: off by 2 ulp.
inline float inverse_root(float v) { float r; asm("rsqrt.approx.f32 %0, %1;" : "=f"(r) : "f"(v)); return r; }
inline double inverse_root(double v) { return 1 / sqrt(v); }
// e^v. In float: relative error 2 ulp + |v| 2^-24, 0 below the normal numbers.
inline float exponential(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v * 1.4426950408889634f));
  return r;
}
inline double exponential(double v) { return exp(v); }
// The maximum; NaN propagates.
inline float larger(float a, float b) { float r; asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b)); return r; }
inline double larger(double a, double b) { return a > b || a != a ? a : b; }

// Copy 16 bytes from global to shared memory asynchronously; both addresses aligned to 16 bytes.
template <class T> inline void copy_async(Shared<T> to, Global<const T> from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
// The same to a byte of the block's shared memory; zeros if there is nothing to copy.
inline uint32 byte_address(uint32 byte) { return shared_address(shared_bytes) + byte; }
template <class T> inline void copy_async(uint32 to, Global<const T> from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               ::"r"(byte_address(to)), "l"(from), "r"(is_there ? 16 : 0) : "memory");
}
inline void copy_number_async(uint32 to, Global<const float> from, bool is_there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               ::"r"(byte_address(to)), "l"(from), "r"(is_there ? 4 : 0) : "memory");
}
inline float read_shared(uint32 byte) {  // volatile, so that it is not loaded earlier and takes no register
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(byte_address(byte)) : "memory");
  return v;
}
inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until all but the last `left` groups of this thread have arrived; other threads see them after sync_threads.
template <int left> inline void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory"); }

// An mbarrier in shared memory: a phase ends after `count` arrivals and all expected bytes.
inline void barrier_init(Shared<uint64> b, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}
inline void barrier_arrive(Shared<uint64> b) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(shared_address(b)) : "memory");
}
#if __CUDA_ARCH__ >= 900
inline void barrier_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
inline void barrier_expect(Shared<uint64> b, uint32 bytes) {  // and arrive
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
inline void barrier_wait(Shared<uint64> b, uint32 parity) {  // until the phase of this parity has ended
  uint32 done = 0;
  while (!done)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(shared_address(b)), "r"(parity) : "memory");
}
// Copy `bytes` (a multiple of 16) by the copy engine; they count for the phase of the barrier.
template <class T> inline void copy_bulk(Shared<T> to, Global<const T> from, uint32 bytes, Shared<uint64> b) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(b)) : "memory");
}
#endif

// Four matrices of 8 x 8 16-bit numbers: lane 8 m + r gives row r of matrix m, and each lane gets a pair of each.
template <class T> inline void load_matrices(uint32 (&out)[4], Shared<const T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(shared_address(row)) : "memory");
}
template <class T> inline void load_matrices_transposed(uint32 (&out)[4], Shared<const T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(shared_address(row)) : "memory");
}

inline void load_matrices(uint32 (&out)[4], uint32 row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(byte_address(row)) : "memory");
}
inline void load_matrices_transposed(uint32 (&out)[4], uint32 row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(byte_address(row)) : "memory");
}

// d (16 x 8) += a (16 x 16) b (16 x 8), distributed over a warp: 16-bit numbers, sums in float32.
#define MULTIPLY_ADD(T, name)                                                                                   \
  inline void multiply_add(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2], T) {                     \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 {%0, %1, %2, %3}, "               \
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                                \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                           \
  }
MULTIPLY_ADD(float16, "f16")
MULTIPLY_ADD(bfloat16, "bf16")
#undef MULTIPLY_ADD

// d (16 x 8) += a (16 x 8) b (8 x 8) of floats, whose last 13 bits are ignored.
inline void multiply_add_tf32(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// After this and a barrier, multiply_group reads what this thread has written to shared memory, or copied and waited for.
inline void show_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Before the first of several products whose registers the threads have written; `hold` each array of these before it.
inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Wait until all but the last `left` committed groups are done; then `hold` their results.
template <int left> inline void wait_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory"); }
// A compiler barrier: accesses to these registers are not moved across it.
template <int PARTS> inline void hold(float (&sums)[PARTS][4]) {
  UNROLL for (int part = 0; part < PARTS; part++)
    UNROLL for (int n = 0; n < 4; n++) asm volatile("" : "+f"(sums[part][n]) :: "memory");
}
template <int STEPS> inline void hold(uint32 (&weights)[STEPS][4]) {
  UNROLL for (int step = 0; step < STEPS; step++)
    UNROLL for (int n = 0; n < 4; n++) asm volatile("" : "+r"(weights[step][n]) :: "memory");
}

// d (64 x N) = a (64 x 16) b (16 x N), added to d if `adds`: by the four warps of a warpgroup, of which each has 16 rows,
// distributed over its lanes as by multiply_add. Asynchronous until wait_products. a and b are descriptors of matrices in
// shared memory with the inner dimension along rows, a of 64 rows and b of N; or a is fragments, and b has 16 rows of N
// numbers.
#define NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_32                                                                                                       \
  NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64                                                                                                       \
  NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, "     \
           "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define REGISTERS_16(n) REGISTERS_4(n), REGISTERS_4(n + 1), REGISTERS_4(n + 2), REGISTERS_4(n + 3)
#define ALL_REGISTERS_16 REGISTERS_16(0)
#define ALL_REGISTERS_32 ALL_REGISTERS_16, REGISTERS_16(4)
#define ALL_REGISTERS_64 ALL_REGISTERS_32, REGISTERS_16(8), REGISTERS_16(12)
#define MULTIPLY_GROUP(T, name, columns, sums, n0, n1, n2, n3, n4, n5)                                                  \
  inline void multiply_group(float (&d)[columns / 8][4], uint64 left, uint64 right, bool adds, T) {                    \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #n2 ", 0; wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32."    \
                 name "." name " {" NAMES_##sums "}, %" #n0 ", %" #n1 ", p, 1, 1, 0, 0; }"                              \
                 : ALL_REGISTERS_##sums : "l"(left), "l"(right), "r"(int(adds)));                                          \
  }                                                                                                                    \
  inline void multiply_group(float (&d)[columns / 8][4], const uint32 (&left)[4], uint64 right, bool adds, T) {        \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #n5 ", 0; wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32."    \
                 name "." name " {" NAMES_##sums "}, {%" #n0 ", %" #n1 ", %" #n2 ", %" #n3 "}, %" #n4                   \
                 ", p, 1, 1, 1; }"                                                                                     \
                 : ALL_REGISTERS_##sums                                                                                    \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "r"(int(adds)));                \
  }
MULTIPLY_GROUP(float16, "f16", 32, 16, 16, 17, 18, 19, 20, 21)
MULTIPLY_GROUP(float16, "f16", 64, 32, 32, 33, 34, 35, 36, 37)
MULTIPLY_GROUP(bfloat16, "bf16", 64, 32, 32, 33, 34, 35, 36, 37)
MULTIPLY_GROUP(float16, "f16", 128, 64, 64, 65, 66, 67, 68, 69)
MULTIPLY_GROUP(bfloat16, "bf16", 128, 64, 64, 65, 66, 67, 68, 69)
#undef MULTIPLY_GROUP
#endif

#else
#include "emulation.h"
#endif

// A matrix in shared memory for multiply_group, with strides in bytes, in rows of 128 bytes whose chunks of 16 are
// swizzled by the number of the row modulo 8; the pattern starts at multiples of 1024 bytes.
inline uint64 describe(uint32 byte, uint32 leading, uint32 stride) {
  return uint64((byte_address(byte) & 0x3ffff) >> 4) | uint64(leading >> 4) << 16 | uint64(stride >> 4) << 32 | 1ull << 62;
}

// The type that numbers are computed in.
template <class T> struct ComputedIn { using type = float; };
template <> struct ComputedIn<double> { using type = double; };

inline float sum_over_lanes(float v) {
  UNROLL for (int lanes = 16; lanes; lanes /= 2) v += shuffle_xor(v, lanes);
  return v;
}
