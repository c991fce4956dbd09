// The distribution of the numbers of a row over the threads that share it, and reductions over these threads.
//
// The threads of one threadIdx.y share a row: a warp, or with one row per block any number of warps. A thread holds N numbers
// in registers, in chunks of 16 bytes as stored. A row that is longer than its threads hold is processed in several spans,
// and read again for each pass over it. WHOLE rows consist of whole chunks and start at multiples of 16 bytes; others are
// read number by number, at the same indices.
#pragma once
#include "primitives.cuh"

template <class T> constexpr int CHUNK = 16 / sizeof(T);  // numbers of 16 bytes
template <class T> constexpr int COUNT = 32 / sizeof(typename ComputedIn<T>::type);  // numbers of a thread, for any row
// The same where a whole row is held: of a kernel that holds one array, and of one that holds two.
template <class T> constexpr int HELD_ONE = sizeof(T) == 8 ? 8 : 32;
template <class T> constexpr int HELD_TWO = 2 * CHUNK<T>;

constexpr int WIDE = 1024;  // threads of a row of which registers and shared memory hold one array each

template <class T> constexpr int MOST_THREADS = sizeof(T) == 8 ? 512 : 1024;  // most threads of a row

// The type of indices in a row: 32 bits, which take fewer registers, where the row is held.
template <bool HELD> struct IndexOf { using type = int64; };
template <> struct IndexOf<true> { using type = int; };
template <bool HELD> using Index = typename IndexOf<HELD>::type;

template <class Real> constexpr int REDUCED = 4 * 32 * sizeof(Real);  // bytes of shared memory for `reduce`

// The numbers that all threads of a row hold together, N each.
template <class T, int N = COUNT<T>> inline int64 span() { return int64(blockDim.x) * N; }

// The index of number e of this thread in a row of T, in the span from `start` on.
template <class T, class Offset> inline Offset position(Offset start, int e) {
  return start + (Offset(e / CHUNK<T>) * Offset(blockDim.x) + Offset(threadIdx.x)) * CHUNK<T> + e % CHUNK<T>;
}

// f(e, index) for all numbers of this thread that are in the row.
template <class T, int N = COUNT<T>, bool WHOLE = false, class Offset, class F>
inline void each(Offset start, Offset width, F f) {
  UNROLL for (int c = 0; c < N; c += CHUNK<T>) {
    const Offset i = position<T>(start, c);
    if (WHOLE && i >= width) continue;
    UNROLL for (int e = 0; e < CHUNK<T>; e++)
      if (WHOLE || i + e < width) f(c + e, i + e);
  }
}

// A chunk from index i on, with one load of 16 bytes where it is aligned; `beyond` after the end of the row.
template <class T, bool WHOLE, class Offset, class Real>
inline void read_chunk(Global<const T> row, Offset i, Offset width, Real* numbers, Real beyond) {
  T chunk[CHUNK<T>];
  if (WHOLE ? i < width : is_aligned16(row) && i + CHUNK<T> <= width) {
    load16<T>(row, i, chunk);
    UNROLL for (int e = 0; e < CHUNK<T>; e++) numbers[e] = wide(chunk[e]);
  } else {
    UNROLL for (int e = 0; e < CHUNK<T>; e++) numbers[e] = !WHOLE && i + e < width ? Real(wide(row[i + e])) : beyond;
  }
}

template <class T, bool WHOLE, class Offset, class Real>
inline void write_chunk(Global<T> row, Offset i, Offset width, const Real* numbers) {
  T chunk[CHUNK<T>];
  UNROLL for (int e = 0; e < CHUNK<T>; e++) narrow(numbers[e], chunk[e]);
  if (WHOLE ? i < width : is_aligned16(row) && i + CHUNK<T> <= width) {
    store16<T>(row, i, chunk);
  } else if (!WHOLE) {
    UNROLL for (int e = 0; e < CHUNK<T>; e++)
      if (i + e < width) row[i + e] = chunk[e];
  }
}

template <class T, bool WHOLE = false, class Offset, class Real, int N>
inline void read(Global<const T> row, Offset start, Offset width, Real (&numbers)[N], Real beyond) {
  UNROLL for (int c = 0; c < N; c += CHUNK<T>)
    read_chunk<T, WHOLE>(row, position<T>(start, c), width, numbers + c, beyond);
}

template <class T, bool WHOLE = false, class Offset, class Real, int N>
inline void write(Global<T> row, Offset start, Offset width, const Real (&numbers)[N]) {
  UNROLL for (int c = 0; c < N; c += CHUNK<T>) write_chunk<T, WHOLE>(row, position<T>(start, c), width, numbers + c);
}

// f(numbers of x, index of the first) for each chunk of one long row, to out. If the numbers of a block are aligned and within
// the row, a thread loads all of its own first.
template <class T, int N, class F> inline void map_chunks(Global<const T> x, Global<T> out, int64 count, F f) {
  using Real = typename ComputedIn<T>::type;
  const bool aligned = is_aligned16(x) && is_aligned16(out);
  for (int64 start = blockIdx.x * span<T, N>(); start < count; start += gridDim.x * span<T, N>()) {
    Real v[CHUNK<T>];
    if (aligned && start + span<T, N>() <= count) {
      T chunks[N / CHUNK<T>][CHUNK<T>];
      UNROLL for (int c = 0; c < N; c += CHUNK<T>) load16<T>(x, position<T>(start, c), chunks[c / CHUNK<T>]);
      UNROLL for (int c = 0; c < N; c += CHUNK<T>) {
        UNROLL for (int e = 0; e < CHUNK<T>; e++) v[e] = wide(chunks[c / CHUNK<T>][e]);
        f(v, position<T>(start, c));
        UNROLL for (int e = 0; e < CHUNK<T>; e++) narrow(v[e], chunks[c / CHUNK<T>][e]);
        store16<T>(out, position<T>(start, c), chunks[c / CHUNK<T>]);
      }
    } else {
      for (int c = 0; c < N; c += CHUNK<T>) {
        read_chunk<T, false>(x, position<T>(start, c), count, v, Real(0));
        f(v, position<T>(start, c));
        write_chunk<T, false>(out, position<T>(start, c), count, v);
      }
    }
  }
}

// The number of the row that this thread works on first, and the distance to its next one.
inline int64 first_row() { return int64(blockIdx.x) * blockDim.y + threadIdx.y; }
inline int64 rows_apart() { return int64(gridDim.x) * blockDim.y; }

// All numbers of the threads of a row combined, in the same order each time; every thread gets the result. Up to two values
// at once. `phase` counts the reductions of a kernel: they alternate between two buffers in shared memory, so that one
// barrier each is enough. Shared memory: 4 numbers for each of 32 warps, from byte 0 on.
template <int K, class Real, class Combine> inline void reduce(Real (&values)[K], int phase, Combine combine) {
  UNROLL for (int lanes = 16; lanes; lanes /= 2)
    UNROLL for (int k = 0; k < K; k++) values[k] = combine(values[k], shuffle_xor(values[k], lanes));
  const int warps = blockDim.x / 32;
  if (warps == 1) return;
  Shared<Real> warp_values = shared<Real>(0) + phase % 2 * 64;
  if (threadIdx.x % 32 == 0)
    UNROLL for (int k = 0; k < K; k++) warp_values[k * 32 + threadIdx.x / 32] = values[k];
  sync_threads();
  UNROLL for (int k = 0; k < K; k++) values[k] = warp_values[k * 32 + (threadIdx.x & (warps - 1))];  // a power of two
  for (int lanes = warps / 2; lanes; lanes /= 2)
    UNROLL for (int k = 0; k < K; k++) values[k] = combine(values[k], shuffle_xor(values[k], lanes));
}

template <int K, class Real> inline void add_up(Real (&values)[K], int phase) {
  reduce(values, phase, [](Real a, Real b) { return a + b; });
}
template <class Real> inline Real reduce_sum(Real value, int phase = 0) {
  Real values[1] = {value};
  add_up(values, phase);
  return values[0];
}
template <class Real> inline Real reduce_max(Real value, int phase = 0) {
  Real values[1] = {value};
  reduce(values, phase, [](Real a, Real b) { return larger(a, b); });
  return values[0];
}

// Prefetch of whole rows: N numbers of each thread are copied to shared memory while it processes others. Each thread reads only
// its own copies, so that no barrier is needed. Shared memory: N numbers of each thread, from byte `start` on.
template <class T, int N> struct Ahead {
  static constexpr int BYTES = N * sizeof(T);  // of a thread
  Shared<T> mine;
  int apart;

  inline Ahead(int start, int thread, int threads)
      : mine(shared<T>(start) + thread * CHUNK<T>), apart(threads * CHUNK<T>) {}

  // Copy the chunk from index i of the row as the one of number c.
  inline void fetch(int c, Global<const T> row, int i, int width) const {
    if (i < width) copy_async<T>(mine + c / CHUNK<T> * apart, row + i);
  }
  // Read it, after wait_copies; `beyond` where nothing was copied.
  template <class Real> inline void take(int c, bool present, Real* numbers, Real beyond = Real(0)) const {
    T chunk[CHUNK<T>];
    UNROLL for (int e = 0; e < CHUNK<T>; e++) narrow(beyond, chunk[e]);
    if (present) load16<T>(Shared<const T>(mine), c / CHUNK<T> * apart, chunk);
    UNROLL for (int e = 0; e < CHUNK<T>; e++) numbers[e] = wide(chunk[e]);
  }
};

// The shift of a softmax from its maximum: 0 if that is -inf.
template <class Real> inline Real softmax_shift(Real row_max) { return row_max == -infinity<Real>() ? Real(0) : row_max; }

// Powers of two that keep sums of a row in range: SHRINK, as in attnarray.magnitude, numbers whose squares overflow; SHARE
// all numbers of a row, whose sum then does not.
template <class Real> constexpr Real SHRINK = Real(8.271806125530277e-25);  // 2^-80
template <> constexpr double SHRINK<double> = 2.2982786799458352e-187;  // 2^-620
template <class Real> constexpr Real SHARE = Real(2.3283064365386963e-10);  // 2^-32

// (x - mean) inverse, computed with halves, so that the difference of two large numbers stays finite.
template <class Real> inline Real x_hat(Real x, Real mean, Real inverse) {
  return fma(x, Real(0.5), Real(-0.5) * mean) * (inverse + inverse);
}

// 1 / sqrt(variance + eps), of numbers that were multiplied by `factor` and `shrink`; eps, shrunk twice, may be 0.
template <class Real> inline Real inverse_deviation(Real variance, Real eps, Real factor, Real shrink) {
  if (variance == 0) return inverse_root(eps) * (1 / factor) * (shrink == 1 ? Real(1) : 1 / SHRINK<Real>);
  return inverse_root(variance + eps * (factor * factor) * shrink * shrink);
}

// sum / size as exact as by a division, which would be a call: the mean of equal numbers is exact.
template <class Real> inline Real exact_mean(Real sum, Real size, Real share) {
  const Real mean = sum * share, left = fma(-mean, size, sum);
  return left == left ? fma(left, share, mean) : mean;
}
