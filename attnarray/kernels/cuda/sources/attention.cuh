// Shared by the kernels of attention: the problem, the visible keys of a query, dropout, the rows of a block.
//
// Compiled for constants: DIM and VALUE_DIM (of a head, rounded up to what tiles hold), WARPS of a block, PANELS of 16 rows of a
// warp, ACROSS (rows of the tiles that a block loops over), and options: BIAS and MASK (IN_TILES or BY_NUMBER), SOFTCAP,
// DROPOUT (1 by a seed, 2 by a mask), SIGNED (a scale that is not positive).
#pragma once
#include "matrix.cuh"
#include "philox.cuh"

struct Strides { int64 batch, head, row; };
struct Table { int64 batch, head, query, key; };  // strides of an array over the scores, 0 where it is the same

struct Problem {
  Strides q, k, v, dout;
  Table bias, mask, keep;
  int64 left, right, offset;  // query i has position i + offset and attends to `left` keys before to `right` keys after it
  int64 first_key, limit;     // dropout: the position of key 0; words below the limit are dropped
  int batch, heads, kv_heads, queries, keys, dim, value_dim;
  int parts;                  // over how many blocks the keys of a query are split
  int hides;                  // whether some weights may be 0: masks or dropout
  uint32 seed_low, seed_high;
  float scale, softcap, kept;  // kept: 1 / (1 - p)
};

struct Options {
  Global<const Stored> bias;
  Global<const unsigned char> mask, keep;
  Global<const int64> offsets, lengths;  // of each batch
};
#define OPTIONS                                                                                            \
  Global<const Stored> bias, Global<const unsigned char> mask, Global<const unsigned char> keep,           \
      Global<const int64> offsets, Global<const int64> lengths, Problem p
#define GIVEN_OPTIONS {bias, mask, keep, offsets, lengths}

constexpr int THREADS = 32 * WARPS;
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
constexpr bool UNSCALED = !(BIAS || SOFTCAP || SIGNED);  // scores are products times a positive factor, or masked
constexpr bool PLAIN = UNSCALED && !MASK;                // only a band may mask them
enum { IN_TILES = 1, BY_NUMBER };                        // how bias and mask are read

// One head of one batch.
struct Head {
  int batch, head, kv_head;
  int64 offset;
  int length;  // of its keys
};

inline int within(int64 value, int most) { return value < 0 ? 0 : value > most ? most : int(value); }

inline Head make_head(int batch, int head, const Options& o, const Problem& p) {
  const int group = p.kv_heads ? p.heads / p.kv_heads : 1;
  Head h = {batch, head, head / group, p.offset, p.keys};
  if (o.offsets) h.offset = o.offsets[batch];
  if (o.lengths) h.length = within(o.lengths[batch], p.keys);
  return h;
}
// The keys [first, past) visible to query t, apart from masks.
inline int first_key(int64 t, const Head& h, const Problem& p) { return within(t + h.offset - p.left, h.length); }
inline int past_key(int64 t, const Head& h, const Problem& p) { return within(t + h.offset + p.right + 1, h.length); }

inline int64 table_offset(const Table& table, const Head& h, int t, int key) {
  return h.batch * table.batch + h.head * table.head + t * table.query + key * table.key;
}

inline uint32 philox_word(const Words& words, int n) {
  const uint32 low = n & 1 ? words.word[1] : words.word[0], high = n & 1 ? words.word[3] : words.word[2];
  return n & 2 ? high : low;
}

// The dropout factors of the weights of a query with two keys: `kept` or 0.
inline void keep_pair(float (&factor)[2], const Head& h, int t, int key, const Options& o, const Problem& p) {
  if (DROPOUT == 1) {
    const int64 at = key + p.first_key;
    const uint32 row = uint32(t + h.offset + p.first_key);
    auto draw = [&](int64 block) { return philox(uint32(block), row, h.head, h.batch, p.seed_low, p.seed_high); };
    Words words = draw(at >> 2);
    factor[0] = int64(philox_word(words, at & 3)) >= p.limit ? p.kept : 0.0f;
    if ((at & 3) == 3) words = draw((at + 1) >> 2);
    factor[1] = int64(philox_word(words, (at + 1) & 3)) >= p.limit ? p.kept : 0.0f;
  }
  if (DROPOUT == 2)
    for (int n = 0; n < 2; n++)
      factor[n] = key + n < p.keys && o.keep[table_offset(p.keep, h, t, key + n)] ? p.kept : 0.0f;
}
inline float dropout_factor(const Head& h, int t, int key, const Options& o, const Problem& p) {
  float factor[2] = {1, 1};
  if (DROPOUT) keep_pair(factor, h, t, key, o, p);
  return factor[0];
}

inline bool is_finite(float v) { return fabs(v) <= 3.402823466e38f; }  // false for NaN

template <int PARTS> inline bool all_finite(const float (&sums)[PANELS][PARTS][4]) {
  bool is_right = true;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int part = 0; part < PARTS; part++)
      UNROLL for (int n = 0; n < 4; n++) is_right &= is_finite(sums[panel][part][n]);
  return is_right;
}

// weight * x; if weights may be 0 by masks or dropout, a weight of 0 masks x, and other weights give NaN for non-finite x.
inline float masked_product(float weight, float x, const Problem& p) {
  if (!p.hides || is_finite(x)) return weight * x;
  return weight == 0 ? 0.0f : infinity<float>() - infinity<float>();
}

// The product of two rows, by a warp; every lane gets it.
inline float row_product(Global<const Stored> x, Global<const Stored> y, int count) {
  float sum = 0;
  for (int d = threadIdx.x % 32; d < count; d += 32) {
    Stored a = x[d], b = y[d];
    sum += wide(a) * wide(b);
  }
  return sum_over_lanes(sum);
}

template <class T> inline Global<T> row_pointer(Global<T> x, const Strides& s, int batch, int head, int row) {
  return x + (batch * s.batch + head * s.head + row * s.row);
}

// The rows of a block of queries: those of all heads that share keys, one head after the other. Row r is query r % T of head
// r / T of the group.
constexpr int ROWS = 16 * WARPS * PANELS;
struct Rows {
  int batch, kv_head, group, first, count;  // `count` rows of the group, of which the block has those from `first` on
  Head head;                                // the first of the group

  inline bool is_there(int row) const { return first + row < count; }
  inline int query(int row, const Problem& p) const { return is_there(row) ? (first + row) % p.queries : 0; }
  inline Head head_at(int row, const Problem& p) const {
    Head h = head;
    if (is_there(row)) h.head += (first + row) / p.queries;
    return h;
  }
  inline int64 number(int row, const Problem& p) const {  // of the row among all rows of all heads
    return (int64(batch) * p.heads + kv_head * group) * p.queries + first + row;
  }
};

// Blocks with the most keys come first: the last queries of all heads, then those before.
inline Rows block_rows(const Options& o, const Problem& p) {
  Rows rows;
  rows.batch = blockIdx.x / p.kv_heads, rows.kv_head = blockIdx.x % p.kv_heads;
  rows.group = p.heads / p.kv_heads, rows.count = rows.group * p.queries;
  const int blocks = p.queries / ROWS, block = gridDim.y - 1 - blockIdx.y;
  rows.first = block * ROWS;
  if (blocks * ROWS == p.queries) rows.first = block % rows.group * p.queries + block / rows.group * ROWS;
  rows.head = make_head(rows.batch, rows.kv_head * rows.group, o, p);
  return rows;
}

// The keys visible to some row of the block.
inline void block_keys(const Rows& rows, const Problem& p, int& first, int& past) {
  const int last = (rows.first + ROWS < rows.count ? rows.first + ROWS : rows.count) - 1;
  const bool is_one_head = rows.first / p.queries == last / p.queries;
  first = first_key(is_one_head ? rows.first % p.queries : 0, rows.head, p);
  past = past_key(is_one_head ? last % p.queries : p.queries - 1, rows.head, p);
}

// The tiles of keys [tile, past_tile) with those visible to rows of a block.
inline void block_tiles(const Rows& rows, const Problem& p, int& tile, int& past_tile) {
  int first, past;
  block_keys(rows, p, first, past);
  tile = first / ACROSS, past_tile = (past + ACROSS - 1) / ACROSS;
}

// Rows of queries (or of their gradients) into shared memory; zeros beyond.
template <class TILE>
inline void fill_rows(const TILE& tile, Global<const Stored> x, const Strides& s, const Rows& rows, int columns,
                      const Problem& p) {
  UNROLL for (int i = threadIdx.x; i < ROWS * TILE::CHUNKS; i += THREADS) {
    const int row = i / TILE::CHUNKS, chunk = i % TILE::CHUNKS, column = chunk * NUMBERS<Stored>;
    const bool is_there = rows.is_there(row) && column < columns;
    Global<const Stored> from = row_pointer(x, s, rows.batch, rows.head_at(row, p).head, rows.query(row, p));
    copy_async<Stored>(tile.chunk_address(row, chunk), from + column, is_there);
  }
}

// The keys visible to some row of a warp, and those visible to all of its rows.
struct KeyBounds { int some_first, some_past, all_first, all_past; };

inline int lane_row(int panel, int half) {
  return (threadIdx.x / 32 * PANELS + panel) * 16 + half * 8 + threadIdx.x % 32 / 4;
}

inline KeyBounds warp_bounds(const Rows& rows, const Problem& p) {
  constexpr int BEYOND = 1 << 30;
  KeyBounds bounds = {BEYOND, 0, 0, BEYOND};
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const int row = lane_row(panel, half), t = rows.query(row, p);
      if (!rows.is_there(row)) continue;
      const int first = first_key(t, rows.head, p), past = past_key(t, rows.head, p);
      if (first < bounds.some_first) bounds.some_first = first;
      if (past > bounds.some_past) bounds.some_past = past;
      if (first > bounds.all_first) bounds.all_first = first;
      if (past < bounds.all_past) bounds.all_past = past;
    }
  return {min_over_lanes(bounds.some_first), max_over_lanes(bounds.some_past), max_over_lanes(bounds.all_first),
          min_over_lanes(bounds.all_past)};
}
