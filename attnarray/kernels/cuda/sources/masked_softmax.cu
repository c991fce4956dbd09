// From dot products to attention weights and back: scale, softcap, bias, mask, band, lengths, sinks, softmax.
// Reference: attention/normalizers.py, in whose dtype the numbers are stored. Parallel over the rows of B, H, T and within them.
// Memory: as in softmax.cu; the results overwrite the arguments. Shared: one number per warp.
#include "rows.cuh"

using Real = Stored;

// A bias or mask over (B, H, T, S), with 0 for the stride of an axis along which it is the same.
template <class T> struct Table {
  Global<const T> start;
  int64 batch, head, query, key;
};

// The row of one query: its visible keys [first, past) by band and lengths, and its rows of bias and mask.
struct Query {
  int64 batch, head, first, past;
  Global<const Stored> bias;
  Global<const unsigned char> mask;
  int64 bias_apart, mask_apart;
};

struct Rules {
  Real scale, softcap;  // 0 for no softcap
  Table<Stored> bias;
  Table<unsigned char> mask;
  int64 left, right, offset;
  Global<const int64> offsets, lengths;
  int64 heads, queries, keys;
};

inline Query make_query(int64 n, const Rules& rules) {
  Query q;
  const int64 i = n % rules.queries;
  q.head = n / rules.queries % rules.heads;
  q.batch = n / rules.queries / rules.heads;
  int64 position = i + rules.offset;
  if (rules.offsets) position += rules.offsets[q.batch];
  int64 past = position + rules.right + 1;
  if (past > rules.keys) past = rules.keys;
  if (rules.lengths) {
    const int64 length = rules.lengths[q.batch];
    if (past > length) past = length;
  }
  q.first = position - rules.left > 0 ? position - rules.left : 0;
  q.past = past;
  q.bias = rules.bias.start;
  if (q.bias) q.bias = q.bias + (q.batch * rules.bias.batch + q.head * rules.bias.head + i * rules.bias.query);
  q.mask = rules.mask.start;
  if (q.mask) q.mask = q.mask + (q.batch * rules.mask.batch + q.head * rules.mask.head + i * rules.mask.query);
  q.bias_apart = rules.bias.key, q.mask_apart = rules.mask.key;
  return q;
}

// softcap(scale dot) + bias, -inf where masked, even if the dot product is NaN.
inline Real score(Real dot, int64 j, const Query& q, const Rules& rules) {
  if (j < q.first || j >= q.past || (q.mask && !q.mask[j * q.mask_apart])) return -infinity<Real>();
  Real s = dot * rules.scale;
  if (rules.softcap != 0) s = rules.softcap * tanh(s / rules.softcap);
  if (q.bias) {
    const Real added = q.bias[j * q.bias_apart];
    s = added == -infinity<Real>() ? added : s + added;
  }
  return s;
}

#define RULES                                                                                                         \
  Real scale, Real softcap, Global<const Stored> bias, int64 bias_batch, int64 bias_head, int64 bias_query,           \
      int64 bias_key, Global<const unsigned char> mask, int64 mask_batch, int64 mask_head, int64 mask_query,          \
      int64 mask_key, int64 left, int64 right, int64 offset, Global<const int64> offsets, Global<const int64> lengths, \
      int64 heads, int64 queries, int64 keys
#define GIVEN_RULES                                                                                              \
  {scale, softcap, {bias, bias_batch, bias_head, bias_query, bias_key}, {mask, mask_batch, mask_head, mask_query, \
   mask_key}, left, right, offset, offsets, lengths, heads, queries, keys}

KERNEL(512) masked_softmax(Global<Stored> dots, Global<Stored> lse, Global<const Stored> sinks, int64 rows, RULES) {
  const Rules rules = GIVEN_RULES;
  Real v[COUNT<Stored>];
  const bool held = keys <= span<Stored>();
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    const Query q = make_query(n, rules);
    Global<Stored> row = dots + n * keys;
    auto get = [&](int64 start) {
      read<Stored>(row, start, keys, v, -infinity<Real>());
      each<Stored>(start, keys, [&](int e, int64 j) { v[e] = score(v[e], j, q, rules); });
    };
    const Real sink = sinks ? Real(sinks[q.head]) : -infinity<Real>();
    Real row_max = sink, row_sum = 0;
    for (int64 start = 0; start < keys; start += span<Stored>()) {
      get(start);
      UNROLL for (int e = 0; e < COUNT<Stored>; e++) row_max = larger(row_max, v[e]);
    }
    const Real shift = softmax_shift(reduce_max(row_max, 0));
    for (int64 start = 0; start < keys; start += span<Stored>()) {
      if (!held) get(start);
      UNROLL for (int e = 0; e < COUNT<Stored>; e++) {
        v[e] = exp(v[e] - shift);
        row_sum += v[e];
      }
    }
    row_sum = reduce_sum(row_sum, 1) + exp(sink - shift);
    const Real factor = row_sum == 0 ? Real(1) : reciprocal(row_sum);
    for (int64 start = 0; start < keys; start += span<Stored>()) {
      if (!held) {
        get(start);
        UNROLL for (int e = 0; e < COUNT<Stored>; e++) v[e] = exp(v[e] - shift);
      }
      UNROLL for (int e = 0; e < COUNT<Stored>; e++) v[e] *= factor;
      write<Stored>(row, start, keys, v);
    }
    if (threadIdx.x == 0) lse[n] = shift + log(row_sum);
  }
}
EXPORT(masked_softmax)

KERNEL(512) masked_softmax_backward(Global<Stored> dots, Global<Stored> dweights, Global<const Stored> lse,
                               Global<const Stored> delta, Global<Stored> dscores, int64 rows, RULES) {
  const Rules rules = GIVEN_RULES;
  Real v[COUNT<Stored>], d[COUNT<Stored>];
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    const Query q = make_query(n, rules);
    const Real shift = softmax_shift(Real(lse[n])), difference = delta[n];
    for (int64 start = 0; start < keys; start += span<Stored>()) {
      read<Stored>(dots + n * keys, start, keys, v, Real(0));
      read<Stored>(dweights + n * keys, start, keys, d, Real(0));
      each<Stored>(start, keys, [&](int e, int64 j) {
        const Real s = score(v[e], j, q, rules);
        const Real weight = s == -infinity<Real>() ? Real(0) : exp(s - shift);
        const Real gradient = weight == 0 ? Real(0) : weight * (d[e] - difference);
        if (dscores) dscores[n * keys + j] = gradient;
        Real slope = scale;
        if (softcap != 0) {
          const Real capped = tanh(v[e] * (scale / softcap));
          slope = scale * (1 - capped * capped);
        }
        d[e] = weight == 0 ? Real(0) : gradient * slope;
        v[e] = weight;
      });
      write<Stored>(dots + n * keys, start, keys, v);
      write<Stored>(dweights + n * keys, start, keys, d);
    }
  }
}
EXPORT(masked_softmax_backward)
#undef RULES
#undef GIVEN_RULES
