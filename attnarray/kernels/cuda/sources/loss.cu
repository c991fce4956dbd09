// Cross-entropy of rows of logits, forward and backward. Reference: ops/loss.py. Parallel over rows and within them.
// Memory: a row of any length is read once, forward and backward. Shared: that of `reduce`, and the next span of the forward.
// `share` is smoothing / width. Kernels that are called _held are for aligned rows.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

// The online softmax of a thread over its numbers of a row so far.
struct OnlineSoftmax { Real row_max = -infinity<Real>(), row_sum = 0, sum = 0; };  // row_sum is relative to row_max

template <int N> inline void update(OnlineSoftmax& online, const Real (&v)[N], bool first) {
  const Real before = softmax_shift(online.row_max);
  UNROLL for (int e = 0; e < N; e++) online.row_max = larger(online.row_max, v[e]);
  const Real shift = softmax_shift(online.row_max);
  if (!first) online.row_sum *= exponential(before - shift);
  UNROLL for (int e = 0; e < N; e++) online.row_sum += exponential(v[e] - shift);
}

// The results: the loss of each row, and maximum and sum for the backward pass.
struct Losses {
  Real smoothing, share;
  Global<Real> losses, row_maxima, row_sums;

  inline void ignore(int64 n, int64 width) const { losses[n] = Real(0), row_maxima[n] = Real(0), row_sums[n] = Real(width); }

  // All threads of the row; `picked` is the logit of its class, where threadIdx.x is 0.
  inline void write(int64 n, int64 width, const OnlineSoftmax& online, Real picked, int& phase) const {
    const Real shift = softmax_shift(reduce_max(online.row_max, phase++));
    const bool none = online.row_max == -infinity<Real>();
    Real sums[2] = {none ? Real(0) : online.row_sum * exponential(online.row_max - shift), online.sum};
    if (smoothing != 0) add_up(sums, phase++);
    else sums[0] = reduce_sum(sums[0], phase++);
    if (threadIdx.x) return;
    const Real row_sum = sums[0] == 0 ? Real(1) : sums[0];
    Real loss = (smoothing - 1) * (picked - shift) + log(row_sum);
    if (smoothing != 0) loss -= share * (sums[1] - Real(width) * shift);
    losses[n] = loss, row_maxima[n] = shift, row_sums[n] = row_sum;
  }
};

template <int N>
inline void compute_losses(Global<const Stored> x, Global<const int64> classes, int64 ignored, Losses out, int64 rows,
                      int64 width) {
  Real v[N];
  int phase = 0;
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    const int64 chosen = classes[n];
    if (chosen == ignored) {
      if (threadIdx.x == 0) out.ignore(n, width);
      continue;
    }
    OnlineSoftmax online;
    for (int64 start = 0; start < width; start += span<Stored, N>()) {
      read<Stored>(x + n * width, start, width, v, -infinity<Real>());
      update(online, v, start == 0);
      if (out.smoothing != 0) each<Stored, N>(start, width, [&](int e, int64 i) { online.sum += v[e]; });
    }
    out.write(n, width, online, threadIdx.x ? Real(0) : Real(wide(x[n * width + chosen])), phase);
  }
}

// Few threads loop over many rows: the next span, of this row or another, is prefetched while one is summed.
template <int N>
inline void compute_losses_held(Global<const Stored> x, Global<const int64> classes, int64 ignored, Losses out, int rows,
                           int width) {
  const Ahead<Stored, N> ahead(REDUCED<Real>, threadIdx.y * blockDim.x + threadIdx.x, blockDim.x * blockDim.y);
  auto fetch = [&](Global<const Stored> row, int start) {
    const int mine = start + threadIdx.x * CHUNK<Stored>;
    row = row + mine;
    UNROLL for (int c = 0; c < N; c += CHUNK<Stored>) ahead.fetch(c, row, c * int(blockDim.x), width - mine);
  };
  const int apart = int(rows_apart());
  auto class_at = [&](int n) -> int {  // -1 for ignored rows and beyond the last
    if (n >= rows) return -1;
    const int64 chosen = classes[n];
    return chosen == ignored ? -1 : int(chosen);
  };
  int n = int(first_row()), chosen = class_at(n), next = class_at(n + apart), phase = 0;
  if (chosen >= 0) fetch(x + int64(n) * width, 0);
  commit_copies();
  for (; n < rows; n += apart) {
    const int after = class_at(n + 2 * apart);
    Global<const Stored> row = x + int64(n) * width;
    OnlineSoftmax online;
    Real picked = 0;
    if (chosen >= 0 && threadIdx.x == 0) picked = wide(row[chosen]);
    for (int start = 0; start < width; start += int(span<Stored, N>())) {
      Real v[N];
      if (chosen >= 0) {
        wait_copies<0>();
        UNROLL for (int c = 0; c < N; c += CHUNK<Stored>)
          ahead.take(c, position<Stored>(start, c) < width, v + c, -infinity<Real>());
      }
      const int then = start + int(span<Stored, N>());
      if (then < width && chosen >= 0) fetch(row, then);
      if (then >= width && next >= 0) fetch(row + int64(apart) * width, 0);
      commit_copies();
      if (chosen < 0) continue;
      update(online, v, start == 0);
      if (out.smoothing != 0) each<Stored, N, true>(start, width, [&](int e, int i) { online.sum += v[e]; });
    }
    if (chosen >= 0) out.write(n, width, online, picked, phase);
    else if (threadIdx.x == 0) out.ignore(n, width);
    chosen = next, next = after;
  }
}

// dx = (softmax - (1 - smoothing) [chosen] - share) g. The thread of the chosen number writes it a second time.
template <int N, bool WHOLE>
inline void differentiate(Global<const Real> g, Global<const Stored> x, Global<const int64> classes,
                          Global<const Real> row_maxima, Global<const Real> row_sums, int64 ignored, Real smoothing,
                          Real share, Global<Stored> dx, int64 rows, Index<WHOLE> width) {
  Real v[N];
  const Index<WHOLE> step = span<Stored, N>();
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    const int64 chosen = classes[n];
    const bool kept = chosen != ignored;
    const Real slope = g[n], shift = row_maxima[n], factor = reciprocal(Real(row_sums[n]));
    Global<const Stored> row = x + n * width;
    for (Index<WHOLE> start = 0; start < width; start += step) {
      if (kept) read<Stored, WHOLE>(row, start, width, v, Real(0));
      UNROLL for (int e = 0; e < N; e++) v[e] = kept ? (exponential(v[e] - shift) * factor - share) * slope : Real(0);
      write<Stored, WHOLE>(dx + n * width, start, width, v);
    }
    if (kept && uint64(chosen) < uint64(width) && (uint32(chosen / CHUNK<Stored>) & (blockDim.x - 1)) == threadIdx.x) {
      const Real p = exponential(wide(row[chosen]) - shift) * factor;
      Stored rounded;
      narrow((p - (1 - smoothing) - share) * slope, rounded);
      dx[n * width + chosen] = rounded;
    }
    if (WHOLE) break;
  }
}

// Numbers of a row that a thread holds, and blocks on a processor: AHEAD and AT_ONCE in loss.py.
constexpr int AHEAD = 64 / sizeof(Stored), TOGETHER = sizeof(Stored) == 2 ? 3 : sizeof(Stored) == 4 ? 4 : 1;

#define FORWARD(name, together, body)                                                                     \
  KERNEL_TOGETHER(together ? 256 : 512, together ? together : 1)                                          \
  name(Global<const Stored> x, Global<const int64> classes, int64 ignored, Real smoothing, Real share,    \
       Global<Real> losses, Global<Real> row_maxima, Global<Real> row_sums, int64 rows, int64 width) {        \
    body(x, classes, ignored, {smoothing, share, losses, row_maxima, row_sums}, rows, width);                 \
  }                                                                                                       \
  EXPORT(name)
FORWARD(cross_entropy_forward, 0, compute_losses<COUNT<Stored>>)
FORWARD(cross_entropy_forward_held, TOGETHER, compute_losses_held<AHEAD>)
#undef FORWARD

#define BACKWARD(name, threads, N, WHOLE)                                                                            \
  KERNEL(threads) name(Global<const Real> g, Global<const Stored> x, Global<const int64> classes,                    \
                       Global<const Real> row_maxima, Global<const Real> row_sums, int64 ignored, Real smoothing,        \
                       Real share, Global<Stored> dx, int64 rows, int64 width) {                                     \
    differentiate<N, WHOLE>(g, x, classes, row_maxima, row_sums, ignored, smoothing, share, dx, rows, width);            \
  }                                                                                                                  \
  EXPORT(name)
BACKWARD(cross_entropy_backward, 512, COUNT<Stored>, false)
BACKWARD(cross_entropy_backward_held, 256, HELD_ONE<Stored>, true)
#undef BACKWARD
