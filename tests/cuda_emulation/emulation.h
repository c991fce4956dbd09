// The primitives of primitives.cuh on a CPU: the threads of a block are fibers, and every access is checked.
//
// Found are: accesses outside arrays and shared memory, misaligned vectors, reads of shared memory that nobody has written,
// conflicting accesses that no barrier orders (between threads of a block by vector clocks, between blocks always), reads of
// what an asynchronous copy still fills, writes to what a product of a warpgroup still reads, sums of one that was not waited for,
// missing proxy fences before such products, barriers that not all threads reach, and deadlocks.
// Not found are: missing fences of registers (begin_products), bank conflicts, register limits, time.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace emulation {

struct Dim { unsigned x, y, z; };
struct Launch { unsigned blocks[3], threads[3], shared, seed; };
struct Range { char* start; size_t bytes; };
enum Access { READ, WRITE };

extern Dim thread_index, block_index, block_size, grid_size;
extern unsigned char* shared_memory;
constexpr size_t UNKNOWN = ~size_t(0);

[[noreturn]] void fault(const char* format, ...);
void touch_global(const void* address, size_t bytes, Access access);
void touch_shared(size_t offset, size_t bytes, Access access);
void sync_block();
bool any_in_block(bool flag);
void sync_lanes();
// Every lane of the warp gives `bytes` bytes and sees those of all 32; `what` must be the same for all of them.
const unsigned char* exchange(const char* what, const void* mine, size_t bytes);
unsigned lane();
void copy_async(size_t to, const void* from, uint32 bytes = 16);  // zeros if `from` is null
void commit_copies();
void wait_copies(int left);
void barrier_init(size_t barrier, int count);
void barrier_arrive(size_t barrier, uint32 bytes);
void barrier_wait(size_t barrier, uint32 parity);
void copy_bulk(size_t to, const void* from, uint32 bytes, size_t barrier);

using Body = void (*)(void* function, void** arguments);
int run(const Launch* launch, Body body, void* function, void** arguments, const Range* arrays, int count, char* message);

// A place in memory: reading, writing and adding go through the checks.
template <class Pointer, class T> struct Place {
  Pointer at;
  operator T() const { return at.read(); }
  Place& operator=(T value) { at.write(value); return *this; }
  Place& operator=(const Place& other) { at.write(other.at.read()); return *this; }
  Place& operator+=(T value) { at.write(at.read() + value); return *this; }
};
template <class Pointer, class T> struct Place<Pointer, const T> {
  Pointer at;
  operator T() const { return at.read(); }
};

template <class T> struct Plain { using type = T; };
template <class T> struct Plain<const T> { using type = T; };

template <class T> struct GlobalPointer {
  using Value = typename Plain<T>::type;
  T* address;
  GlobalPointer() = default;
  GlobalPointer(T* given) : address(given) {}
  operator GlobalPointer<const T>() const { return {address}; }
  explicit operator bool() const { return address != nullptr; }
  GlobalPointer operator+(int64 n) const { return {address + n}; }
  Place<GlobalPointer, T> operator[](int64 n) const { return {*this + n}; }
  Value read() const {
    touch_global(address, sizeof(T), READ);
    Value value;
    memcpy(&value, address, sizeof(T));
    return value;
  }
  void write(Value value) const {
    touch_global(address, sizeof(T), WRITE);
    memcpy(const_cast<Value*>(address), &value, sizeof(T));
  }
};

template <class T> struct SharedPointer {
  using Value = typename Plain<T>::type;
  size_t offset;
  operator SharedPointer<const T>() const { return {offset}; }
  SharedPointer operator+(int64 n) const { return {size_t(int64(offset) + n * int64(sizeof(T)))}; }
  Place<SharedPointer, T> operator[](int64 n) const { return {*this + n}; }
  Value read() const {
    touch_shared(offset, sizeof(T), READ);
    Value value;
    memcpy(&value, shared_memory + offset, sizeof(T));
    return value;
  }
  void write(Value value) const {
    touch_shared(offset, sizeof(T), WRITE);
    memcpy(shared_memory + offset, &value, sizeof(T));
  }
};

template <class... A, size_t... I> void call(void (*f)(A...), void** arguments, std::index_sequence<I...>) {
  f(*static_cast<A*>(arguments[I])...);
}
template <class... A> void call_with(void* f, void** arguments) {
  call(reinterpret_cast<void (*)(A...)>(f), arguments, std::index_sequence_for<A...>());
}
template <class... A>
int launch(void (*f)(A...), const Launch* how, void** arguments, const Range* arrays, int count, char* message) {
  return run(how, call_with<A...>, reinterpret_cast<void*>(f), arguments, arrays, count, message);
}

// The types of a kernel's parameters, a letter each: p an array, i int64, w uint32, f float, d double, s a struct.
template <class T> struct Letter { static constexpr char of = 's'; };
template <class T> struct Letter<GlobalPointer<T>> { static constexpr char of = 'p'; };
template <> struct Letter<int64> { static constexpr char of = 'i'; };
template <> struct Letter<uint32> { static constexpr char of = 'w'; };
template <> struct Letter<float> { static constexpr char of = 'f'; };
template <> struct Letter<double> { static constexpr char of = 'd'; };
template <class... A> const char* parameters(void (*)(A...)) {
  static const char letters[] = {Letter<A>::of..., 0};
  return letters;
}
template <class... A> const unsigned* sizes(void (*)(A...)) {
  static const unsigned bytes[] = {sizeof(A)...};
  return bytes;
}

float from_half(uint16_t bits);
uint16_t to_half(float value);
uint16_t to_brain(float value);
void multiply(float (&d)[4], const uint32* a, const uint32* b, bool brain);
void multiply_tf32(float (&d)[4], const uint32* a, const uint32* b);
void matrices(uint32 (&out)[4], size_t row, bool turned);
void show_products();
// A product of all 128 threads of a warpgroup: 16-bit numbers, `left` registers or null with a description in its place.
void multiply_group(float* sums, int columns, const uint32* left, uint64 described, uint64 right, bool adds, bool brain);
void commit_products();
void wait_products(int left);

}  // namespace emulation

#define KERNEL(threads) static void
#define KERNEL_TOGETHER(threads, blocks) static void
#define JOINED(a, b) a##b
#define JOIN(a, b) JOINED(a, b)
#define EXPORT(name)                                                                                                    \
  extern "C" const char* JOIN(JOIN(JOIN(name, _), Stored), _parameters)() { return emulation::parameters(name); }       \
  extern "C" const unsigned* JOIN(JOIN(JOIN(name, _), Stored), _sizes)() { return emulation::sizes(name); }             \
  extern "C" int JOIN(JOIN(name, _), Stored)(const emulation::Launch* how, void** arguments,                            \
                                             const emulation::Range* arrays, int count, char* message) {                \
    return emulation::launch(name, how, arguments, arrays, count, message);                                             \
  }
#define UNROLL
#define ROLLED
#define threadIdx (emulation::thread_index)
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)
#define gridDim (emulation::grid_size)

template <class T> using Global = emulation::GlobalPointer<T>;
template <class T> using Shared = emulation::SharedPointer<T>;
template <class T> Shared<T> shared(int bytes) { return {size_t(bytes)}; }

inline void sync_threads() { emulation::sync_block(); }
inline void sync_warp() { emulation::sync_lanes(); }
inline bool any_thread(bool flag) { return emulation::any_in_block(flag); }
inline int max_over_lanes(int value) {
  const unsigned char* all = emulation::exchange("max_over_lanes", &value, sizeof value);
  for (int n = 0; n < 32; n++) {
    int other;
    memcpy(&other, all + 64 * n, sizeof other);
    if (other > value) value = other;
  }
  return value;
}
inline int min_over_lanes(int value) { return -max_over_lanes(-value); }
inline bool any_lane(bool flag) { return max_over_lanes(flag); }
template <class T> T shuffle_xor(T value, int lanes) {
  T found;
  const unsigned char* all = emulation::exchange("shuffle_xor", &value, sizeof(T));
  memcpy(&found, all + 64 * (emulation::lane() ^ unsigned(lanes)), sizeof(T));
  return found;
}

template <class Real> Real infinity() { return Real(__builtin_inf()); }
inline float wide(float v) { return v; }
inline double wide(double v) { return v; }
inline float wide(float16 v) { return emulation::from_half(v.bits); }
inline float wide(bfloat16 v) {
  uint32_t bits = uint32_t(v.bits) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline void narrow(float v, float& out) { out = v; }
inline void narrow(double v, double& out) { out = v; }
inline void narrow(float v, float16& out) { out.bits = emulation::to_half(v); }
inline void narrow(float v, bfloat16& out) { out.bits = emulation::to_brain(v); }

template <class T> bool is_aligned16(Global<T> p) { return (reinterpret_cast<uintptr_t>(p.address) & 15) == 0; }
template <class T> void load16(Global<const T> p, int64 i, T (&out)[16 / sizeof(T)]) {
  if (!is_aligned16(p + i)) emulation::fault("16 bytes are loaded from a place that is not aligned to them");
  emulation::touch_global((p + i).address, 16, emulation::READ);
  memcpy(out, (p + i).address, 16);
}
template <class T> void load16(Shared<const T> p, int64 i, T (&out)[16 / sizeof(T)]) {
  if ((p + i).offset % 16) emulation::fault("16 bytes are loaded from a place that is not aligned to them");
  emulation::touch_shared((p + i).offset, 16, emulation::READ);
  memcpy(out, emulation::shared_memory + (p + i).offset, 16);
}
template <class T> void store16(Global<T> p, int64 i, const T (&values)[16 / sizeof(T)]) {
  if (!is_aligned16(p + i)) emulation::fault("16 bytes are stored at a place that is not aligned to them");
  emulation::touch_global((p + i).address, 16, emulation::WRITE);
  memcpy((p + i).address, values, 16);
}
inline uint32 pack(float low, float high, float16) {
  return uint32(emulation::to_half(low)) | uint32(emulation::to_half(high)) << 16;
}
inline uint32 pack(float low, float high, bfloat16) {
  return uint32(emulation::to_brain(low)) | uint32(emulation::to_brain(high)) << 16;
}
template <class T> void store_pair(Global<T> p, int64 i, float low, float high) {
  T pair[2];
  narrow(low, pair[0]), narrow(high, pair[1]);
  if (reinterpret_cast<uintptr_t>((p + i).address) % sizeof pair) emulation::fault("a pair is stored at an odd place");
  emulation::touch_global((p + i).address, sizeof pair, emulation::WRITE);
  memcpy((p + i).address, pair, sizeof pair);
}
template <class T> void load_pair(Global<const T> p, int64 i, T (&pair)[2]) {
  if (reinterpret_cast<uintptr_t>((p + i).address) % sizeof pair) emulation::fault("a pair is loaded from an odd place");
  emulation::touch_global((p + i).address, sizeof pair, emulation::READ);
  memcpy(pair, (p + i).address, sizeof pair);
}
inline uint32 float_bits(float v) {
  uint32 bits;
  memcpy(&bits, &v, 4);
  return bits;
}
inline float from_bits(uint32 bits) {
  float v;
  memcpy(&v, &bits, 4);
  return v;
}
inline uint32 round_tf32(float v) { return v - v == 0 ? float_bits(v) + 0x1000u & 0xffffe000u : float_bits(v); }
inline float exp2_fast(float v) { return std::exp2(v); }
template <class Real> Real reciprocal(Real v) { return Real(1) / v; }
template <class Real> Real inverse_root(Real v) { return Real(1) / std::sqrt(v); }
inline float exponential(float v) { return std::exp2(v * 1.4426950408889634f); }
inline double exponential(double v) { return std::exp(v); }
template <class Real> Real larger(Real a, Real b) { return a > b || a != a ? a : b; }
using std::erf, std::erfc, std::exp, std::exp2, std::log2, std::expm1, std::fabs, std::fma, std::log, std::sqrt, std::tanh;
inline uint32 __umulhi(uint32 a, uint32 b) { return uint32(uint64(a) * b >> 32); }

template <class T> void copy_async(Shared<T> to, Global<const T> from) {
  if (to.offset % 16 || !is_aligned16(from)) emulation::fault("copy_async: both places must be aligned to 16 bytes");
  emulation::copy_async(to.offset, from.address);
}
template <class T> void copy_async(uint32 to, Global<const T> from, bool is_there) {
  if (to % 16 || (is_there && !is_aligned16(from))) emulation::fault("copy_async: both places must be aligned to 16 bytes");
  emulation::copy_async(to, is_there ? from.address : nullptr);
}
inline void copy_number_async(uint32 to, Global<const float> from, bool is_there) {
  emulation::copy_async(to, is_there ? from.address : nullptr, 4);
}
inline float read_shared(uint32 byte) { return Shared<float>{byte}[0]; }
inline void commit_copies() { emulation::commit_copies(); }
template <int left> void wait_copies() { emulation::wait_copies(left); }

inline void barrier_init(Shared<uint64> b, int count) { emulation::barrier_init(b.offset, count); }
inline void barrier_fence() {}
inline void barrier_arrive(Shared<uint64> b) { emulation::barrier_arrive(b.offset, 0); }
inline void barrier_expect(Shared<uint64> b, uint32 bytes) { emulation::barrier_arrive(b.offset, bytes); }
inline void barrier_wait(Shared<uint64> b, uint32 parity) { emulation::barrier_wait(b.offset, parity); }
template <class T> void copy_bulk(Shared<T> to, Global<const T> from, uint32 bytes, Shared<uint64> b) {
  if (to.offset % 16 || !is_aligned16(from) || bytes % 16)
    emulation::fault("copy_bulk: places and size must be multiples of 16 bytes");
  emulation::copy_bulk(to.offset, from.address, bytes, b.offset);
}

template <class T> void load_matrices(uint32 (&out)[4], Shared<T> row) { emulation::matrices(out, row.offset, false); }
template <class T> void load_matrices_transposed(uint32 (&out)[4], Shared<T> row) {
  emulation::matrices(out, row.offset, true);
}
inline void load_matrices(uint32 (&out)[4], uint32 row) { emulation::matrices(out, row, false); }
inline void load_matrices_transposed(uint32 (&out)[4], uint32 row) { emulation::matrices(out, row, true); }
inline void multiply_add(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2], float16) {
  emulation::multiply(d, a, b, false);
}
inline void multiply_add(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2], bfloat16) {
  emulation::multiply(d, a, b, true);
}
inline uint32 byte_address(uint32 byte) { return byte; }
inline void show_products() { emulation::show_products(); }
inline void begin_products() {}
inline void commit_products() { emulation::commit_products(); }
template <int left> void wait_products() { emulation::wait_products(left); }
template <class T> void hold(T&) {}
template <int PARTS, class T>
void multiply_group(float (&d)[PARTS][4], uint64 left, uint64 right, bool adds, T) {
  emulation::multiply_group(&d[0][0], 8 * PARTS, nullptr, left, right, adds, std::is_same_v<T, bfloat16>);
}
template <int PARTS, class T>
void multiply_group(float (&d)[PARTS][4], const uint32 (&left)[4], uint64 right, bool adds, T) {
  emulation::multiply_group(&d[0][0], 8 * PARTS, left, 0, right, adds, std::is_same_v<T, bfloat16>);
}
inline void multiply_add_tf32(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
  emulation::multiply_tf32(d, a, b);
}
