// How the numbers of a row are spread over the threads that share it, and how these add up what they hold.
//
// The threads of one threadIdx.y share a row: a warp, or with one row per block any number of warps. A thread holds 32 bytes
// of numbers in registers, in chunks of 16 bytes as stored. A row that is longer than what its threads hold goes by in
// several spans, and is read again for each pass over it.
#pragma once
#include "primitives.cuh"

template <class T> constexpr int CHUNK = 16 / sizeof(T);                                     // numbers of 16 bytes
template <class T> constexpr int COUNT = 32 / sizeof(typename ComputedIn<T>::type);           // numbers of a thread

// The numbers that all threads of a row hold together.
template <class T> inline int64 span() { return int64(blockDim.x) * COUNT<T>; }

// Where the number e of this thread stands in a row of T, in the span from `start` on.
template <class T> inline int64 place(int64 start, int e) {
  return start + (int64(e / CHUNK<T>) * blockDim.x + threadIdx.x) * CHUNK<T> + e % CHUNK<T>;
}

// f(e, place) for all numbers of this thread that are in the row.
template <class T, class F> inline void each(int64 start, int64 width, F f) {
  UNROLL for (int e = 0; e < COUNT<T>; e++) {
    int64 i = place<T>(start, e);
    if (i < width) f(e, i);
  }
}

// The numbers of this thread, in 16 bytes at once where they are aligned; `beyond` for places behind the row.
template <class T, class Real>
inline void read(Global<const T> row, int64 start, int64 width, Real (&numbers)[COUNT<T>], Real beyond) {
  const bool aligned = is_aligned16(row);
  UNROLL for (int c = 0; c < COUNT<T> / CHUNK<T>; c++) {
    int64 i = place<T>(start, c * CHUNK<T>);
    T chunk[CHUNK<T>];
    if (aligned && i + CHUNK<T> <= width) {
      load16<T>(row, i, chunk);
      UNROLL for (int e = 0; e < CHUNK<T>; e++) numbers[c * CHUNK<T> + e] = wide(chunk[e]);
    } else {
      UNROLL for (int e = 0; e < CHUNK<T>; e++) numbers[c * CHUNK<T> + e] = i + e < width ? Real(wide(row[i + e])) : beyond;
    }
  }
}

template <class T, class Real>
inline void write(Global<T> row, int64 start, int64 width, const Real (&numbers)[COUNT<T>]) {
  const bool aligned = is_aligned16(row);
  UNROLL for (int c = 0; c < COUNT<T> / CHUNK<T>; c++) {
    int64 i = place<T>(start, c * CHUNK<T>);
    T chunk[CHUNK<T>];
    UNROLL for (int e = 0; e < CHUNK<T>; e++) narrow(numbers[c * CHUNK<T> + e], chunk[e]);
    if (aligned && i + CHUNK<T> <= width) {
      store16<T>(row, i, chunk);
    } else {
      UNROLL for (int e = 0; e < CHUNK<T>; e++)
        if (i + e < width) row[i + e] = chunk[e];
    }
  }
}

// The number of the row that this thread works on first, and how many rows lie between it and the next.
inline int64 first_row() { return int64(blockIdx.x) * blockDim.y + threadIdx.y; }
inline int64 rows_apart() { return int64(gridDim.x) * blockDim.y; }

// All numbers of the threads of a row combined, in the same order each time; every thread gets the result.
template <class Real, class Combine> inline Real reduce(Real value, Combine combine) {
  UNROLL for (int lanes = 16; lanes; lanes /= 2) value = combine(value, shuffle_xor(value, lanes));
  const int warps = blockDim.x / 32;
  if (warps == 1) return value;
  Shared<Real> of_warps = shared<Real>(0);
  sync_threads();  // what an earlier reduction left there has been read
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  sync_threads();
  value = of_warps[threadIdx.x % warps];
  for (int lanes = warps / 2; lanes; lanes /= 2) value = combine(value, shuffle_xor(value, lanes));
  return value;
}

template <class Real> inline Real larger(Real a, Real b) { return a > b || a != a ? a : b; }  // NaN comes through
template <class Real> inline Real sum_of(Real value) { return reduce(value, [](Real a, Real b) { return a + b; }); }
template <class Real> inline Real largest_of(Real value) {
  return reduce(value, [](Real a, Real b) { return larger(a, b); });
}

// What is subtracted from numbers whose largest this is: 0 where there is none.
template <class Real> inline Real shift_of(Real largest) { return largest == -infinity<Real>() ? Real(0) : largest; }
