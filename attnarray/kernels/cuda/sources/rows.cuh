// How the numbers of a row are spread over the threads that share it, and how these add up what they hold.
//
// The threads of one threadIdx.y share a row: a warp, or with one row per block any number of warps. A thread holds N numbers
// in registers, in chunks of 16 bytes as stored. A row that is longer than what its threads hold goes by in several spans,
// and is read again for each pass over it. WHOLE rows consist of whole chunks and start at multiples of 16 bytes; others are
// read number by number, at the same places.
#pragma once
#include "primitives.cuh"

template <class T> constexpr int CHUNK = 16 / sizeof(T);  // numbers of 16 bytes
template <class T> constexpr int COUNT = 32 / sizeof(typename ComputedIn<T>::type);  // numbers of a thread, for any row
// The same where a whole row is held: of a kernel that holds one array, and of one that holds two.
template <class T> constexpr int OF_ONE = sizeof(T) == 8 ? 8 : 32;
template <class T> constexpr int OF_TWO = 2 * CHUNK<T>;

constexpr int WIDE = 1024;  // threads of a row that registers and shared memory hold one array each of

template <class T> constexpr int MOST_THREADS = sizeof(T) == 8 ? 512 : 1024;  // most threads of a row

// Of places in a row: 32 bits, which take fewer registers, where the row is held.
template <bool HELD> struct IndexOf { using type = int64; };
template <> struct IndexOf<true> { using type = int; };
template <bool HELD> using Index = typename IndexOf<HELD>::type;

template <class Real> constexpr int REDUCED = 4 * 32 * sizeof(Real);  // bytes of shared memory that `reduce` takes

// The numbers that all threads of a row hold together, N each.
template <class T, int N = COUNT<T>> inline int64 span() { return int64(blockDim.x) * N; }

// Where the number e of this thread stands in a row of T, in the span from `start` on.
template <class T, class Place> inline Place place(Place start, int e) {
  return start + (Place(e / CHUNK<T>) * Place(blockDim.x) + Place(threadIdx.x)) * CHUNK<T> + e % CHUNK<T>;
}

// f(e, place) for all numbers of this thread that are in the row.
template <class T, int N = COUNT<T>, bool WHOLE = false, class Place, class F>
inline void each(Place start, Place width, F f) {
  UNROLL for (int c = 0; c < N; c += CHUNK<T>) {
    const Place i = place<T>(start, c);
    if (WHOLE && i >= width) continue;
    UNROLL for (int e = 0; e < CHUNK<T>; e++)
      if (WHOLE || i + e < width) f(c + e, i + e);
  }
}

// A chunk from place i on, in 16 bytes at once where that can be; `beyond` for places behind the row.
template <class T, bool WHOLE, class Place, class Real>
inline void read_chunk(Global<const T> row, Place i, Place width, Real* numbers, Real beyond) {
  T chunk[CHUNK<T>];
  if (WHOLE ? i < width : is_aligned16(row) && i + CHUNK<T> <= width) {
    load16<T>(row, i, chunk);
    UNROLL for (int e = 0; e < CHUNK<T>; e++) numbers[e] = wide(chunk[e]);
  } else {
    UNROLL for (int e = 0; e < CHUNK<T>; e++) numbers[e] = !WHOLE && i + e < width ? Real(wide(row[i + e])) : beyond;
  }
}

template <class T, bool WHOLE, class Place, class Real>
inline void write_chunk(Global<T> row, Place i, Place width, const Real* numbers) {
  T chunk[CHUNK<T>];
  UNROLL for (int e = 0; e < CHUNK<T>; e++) narrow(numbers[e], chunk[e]);
  if (WHOLE ? i < width : is_aligned16(row) && i + CHUNK<T> <= width) {
    store16<T>(row, i, chunk);
  } else if (!WHOLE) {
    UNROLL for (int e = 0; e < CHUNK<T>; e++)
      if (i + e < width) row[i + e] = chunk[e];
  }
}

template <class T, bool WHOLE = false, class Place, class Real, int N>
inline void read(Global<const T> row, Place start, Place width, Real (&numbers)[N], Real beyond) {
  UNROLL for (int c = 0; c < N; c += CHUNK<T>)
    read_chunk<T, WHOLE>(row, place<T>(start, c), width, numbers + c, beyond);
}

template <class T, bool WHOLE = false, class Place, class Real, int N>
inline void write(Global<T> row, Place start, Place width, const Real (&numbers)[N]) {
  UNROLL for (int c = 0; c < N; c += CHUNK<T>) write_chunk<T, WHOLE>(row, place<T>(start, c), width, numbers + c);
}

// f(numbers of x, place of the first) for each chunk of one long row, to out. A block whose numbers are aligned and all there
// reads those of a thread before it works on any.
template <class T, int N, class F> inline void map_chunks(Global<const T> x, Global<T> out, int64 count, F f) {
  using Real = typename ComputedIn<T>::type;
  const bool aligned = is_aligned16(x) && is_aligned16(out);
  for (int64 start = blockIdx.x * span<T, N>(); start < count; start += gridDim.x * span<T, N>()) {
    Real v[CHUNK<T>];
    if (aligned && start + span<T, N>() <= count) {
      T chunks[N / CHUNK<T>][CHUNK<T>];
      UNROLL for (int c = 0; c < N; c += CHUNK<T>) load16<T>(x, place<T>(start, c), chunks[c / CHUNK<T>]);
      UNROLL for (int c = 0; c < N; c += CHUNK<T>) {
        UNROLL for (int e = 0; e < CHUNK<T>; e++) v[e] = wide(chunks[c / CHUNK<T>][e]);
        f(v, place<T>(start, c));
        UNROLL for (int e = 0; e < CHUNK<T>; e++) narrow(v[e], chunks[c / CHUNK<T>][e]);
        store16<T>(out, place<T>(start, c), chunks[c / CHUNK<T>]);
      }
    } else {
      for (int c = 0; c < N; c += CHUNK<T>) {
        read_chunk<T, false>(x, place<T>(start, c), count, v, Real(0));
        f(v, place<T>(start, c));
        write_chunk<T, false>(out, place<T>(start, c), count, v);
      }
    }
  }
}

// The number of the row that this thread works on first, and how many rows lie between it and the next.
inline int64 first_row() { return int64(blockIdx.x) * blockDim.y + threadIdx.y; }
inline int64 rows_apart() { return int64(gridDim.x) * blockDim.y; }

// All numbers of the threads of a row combined, in the same order each time; every thread gets the result. Up to two values
// at once. `turn` counts the reductions of a kernel: they alternate between two places in shared memory, so that a barrier
// each is enough. Shared memory: 4 numbers for each of 32 warps, from byte 0 on.
template <int K, class Real, class Combine> inline void reduce(Real (&values)[K], int turn, Combine combine) {
  UNROLL for (int lanes = 16; lanes; lanes /= 2)
    UNROLL for (int k = 0; k < K; k++) values[k] = combine(values[k], shuffle_xor(values[k], lanes));
  const int warps = blockDim.x / 32;
  if (warps == 1) return;
  Shared<Real> of_warps = shared<Real>(0) + turn % 2 * 64;
  if (threadIdx.x % 32 == 0)
    UNROLL for (int k = 0; k < K; k++) of_warps[k * 32 + threadIdx.x / 32] = values[k];
  sync_threads();
  UNROLL for (int k = 0; k < K; k++) values[k] = of_warps[k * 32 + (threadIdx.x & (warps - 1))];  // a power of two
  for (int lanes = warps / 2; lanes; lanes /= 2)
    UNROLL for (int k = 0; k < K; k++) values[k] = combine(values[k], shuffle_xor(values[k], lanes));
}

template <int K, class Real> inline void add_up(Real (&values)[K], int turn) {
  reduce(values, turn, [](Real a, Real b) { return a + b; });
}
template <class Real> inline Real sum_of(Real value, int turn = 0) {
  Real values[1] = {value};
  add_up(values, turn);
  return values[0];
}
template <class Real> inline Real largest_of(Real value, int turn = 0) {
  Real values[1] = {value};
  reduce(values, turn, [](Real a, Real b) { return larger(a, b); });
  return values[0];
}

// Of whole rows: N numbers of each thread that come to shared memory while it works on others. Each thread takes what it has
// copied itself, so that no barrier is needed. Shared memory: N numbers of each thread, from byte `start` on.
template <class T, int N> struct Ahead {
  static constexpr int BYTES = N * sizeof(T);  // of a thread
  Shared<T> mine;
  int apart;

  inline Ahead(int start, int thread, int threads)
      : mine(shared<T>(start) + thread * CHUNK<T>), apart(threads * CHUNK<T>) {}

  // The chunk from place i of the row becomes the one of number c.
  inline void fetch(int c, Global<const T> row, int i, int width) const {
    if (i < width) copy_async<T>(mine + c / CHUNK<T> * apart, row + i);
  }
  // The same, after wait_copies; `beyond` where nothing has been copied.
  template <class Real> inline void take(int c, bool there, Real* numbers, Real beyond = Real(0)) const {
    T chunk[CHUNK<T>];
    UNROLL for (int e = 0; e < CHUNK<T>; e++) narrow(beyond, chunk[e]);
    if (there) load16<T>(Shared<const T>(mine), c / CHUNK<T> * apart, chunk);
    UNROLL for (int e = 0; e < CHUNK<T>; e++) numbers[e] = wide(chunk[e]);
  }
};

// What is subtracted from numbers whose largest this is: 0 where there is none.
template <class Real> inline Real shift_of(Real largest) { return largest == -infinity<Real>() ? Real(0) : largest; }

// Powers of two that keep sums of a row in range: SHRINK, as in attnarray.magnitude, numbers whose squares overflow; SHARE
// all numbers of a row, whose sum then does not.
template <class Real> constexpr Real SHRINK = Real(8.271806125530277e-25);  // 2^-80
template <> constexpr double SHRINK<double> = 2.2982786799458352e-187;  // 2^-620
template <class Real> constexpr Real SHARE = Real(2.3283064365386963e-10);  // 2^-32

// (x - mean) inverse, by halves, so that the difference of two large numbers stays finite.
template <class Real> inline Real normal_of(Real x, Real mean, Real inverse) {
  return fma(x, Real(0.5), Real(-0.5) * mean) * (inverse + inverse);
}

// 1 / sqrt(variance + eps), of numbers that were multiplied by `factor` and `shrink`; eps, shrunk twice, may be 0.
template <class Real> inline Real inverse_of(Real variance, Real eps, Real factor, Real shrink) {
  if (variance == 0) return inverse_root(eps) * (1 / factor) * (shrink == 1 ? Real(1) : 1 / SHRINK<Real>);
  return inverse_root(variance + eps * (factor * factor) * shrink * shrink);
}

// sum / size as exactly as a division, which would be a call: the mean of equal numbers is one of them.
template <class Real> inline Real mean_of(Real sum, Real size, Real share) {
  const Real mean = sum * share, left = fma(-mean, size, sum);
  return left == left ? fma(left, share, mean) : mean;
}
