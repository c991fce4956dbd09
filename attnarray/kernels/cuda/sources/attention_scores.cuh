// From products of queries and keys to scores, and from scores to weights: pair by pair, and for tiles of products in registers.
//
// Tiles are computed without checks for NaN and infinities: a block whose sums are not finite recomputes its rows pair by pair,
// where masks hide non-finite numbers. UNSCALED products stay as they are and are scaled in the exponent. Exponents are powers
// of 2.
#pragma once
#include "attention.cuh"

// Scores in tiles become exponents: times a factor, less a shift. UNSCALED products are multiplied first, in one instruction with
// the subtraction. With a bias they may be so large that a shift in units of log 2 is rounded by more than all their differences,
// or overflows: then the shift, a score like others, is subtracted first.
inline float unit(const Problem& p) { return UNSCALED ? p.scale * LOG2E : LOG2E; }
inline float exponent(float x, float factor, float shift) { return UNSCALED ? x * factor - shift : (x - shift) * factor; }
constexpr float SHIFT_UNIT = UNSCALED ? LN2 : 1, SHIFT_TO_EXPONENT = UNSCALED ? 1 : LOG2E;  // of shifts

// The bias and the mask of one query.
struct RowOptions {
  Global<const Stored> bias;
  Global<const unsigned char> mask;
};
inline RowOptions row_options(const Head& h, int t, const Options& o, const Problem& p) {
  RowOptions row = {o.bias, o.mask};
  if (BIAS) row.bias = o.bias + table_offset(p.bias, h, t, 0);
  if (MASK) row.mask = o.mask + table_offset(p.mask, h, t, 0);
  return row;
}
inline float bias_at(const RowOptions& row, int key, const Problem& p) {
  if (!BIAS) return 0;
  Stored stored = row.bias[key * p.bias.key];
  return wide(stored);
}

inline float capped(float product, const Problem& p) {
  return SOFTCAP ? p.softcap * tanh(product * (p.scale / p.softcap)) : product * p.scale;
}
// The derivative of the score by the product, without the scale.
inline float slope(float product, const Problem& p) {
  if (!SOFTCAP) return 1;
  const float cap = tanh(product * (p.scale / p.softcap));
  return 1 - cap * cap;
}

// From the product of a query and a key to the score; -inf where bias or mask mask it.
inline float score(float product, const Head& h, int t, int key, const Options& o, const Problem& p) {
  const RowOptions row = row_options(h, t, o, p);
  const float added = bias_at(row, key, p);
  if (BIAS && added == -infinity<float>()) return added;
  if (MASK && !row.mask[key * p.mask.key]) return -infinity<float>();
  return capped(product, p) + added;
}
// The weight of the pair, before dropout.
inline float pair_weight(float product, float shift, const Head& h, int t, int key, const Options& o, const Problem& p) {
  const float s = score(product, h, t, key, o, p);
  return s == -infinity<float>() ? 0.0f : exp2((s - shift * SHIFT_UNIT) * LOG2E);
}
// The gradient of the score, also from the product of cotangent and value.
inline float score_gradient(float weight, float dproduct, float delta, float kept) {
  if (weight == 0) return 0;
  return weight * ((kept == 0 ? 0.0f : dproduct * kept) - delta);
}
// The gradient of the product.
inline float pair_gradient(float product, float dproduct, float shift, float delta, const Head& h, int t, int key,
                              const Options& o, const Problem& p) {
  const float weight = pair_weight(product, shift, h, t, key, o, p);
  const float ds = score_gradient(weight, dproduct, delta, dropout_factor(h, t, key, o, p));
  return weight == 0 ? 0.0f : ds * slope(product, p) * p.scale;
}

// The derivatives of the scores of a tile by its products, without the scale.
template <int HELD, int PARTS>
inline void slopes(float (&cap_slopes)[PANELS][HELD][4], const float (&products)[PANELS][PARTS][4], const Problem& p) {
  if (!SOFTCAP) return;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int part = 0; part < HELD; part++)
      UNROLL for (int n = 0; n < 4; n++) cap_slopes[panel][part][n] = slope(products[panel][part][n], p);
}

// Bias and mask of HEIGHT queries by WIDTH keys in shared memory from `start` on, if they are read IN_TILES.
template <int HEIGHT, int WIDTH> struct Tables {
  static constexpr bool HAS_BIAS = BIAS == IN_TILES, HAS_MASK = MASK == IN_TILES && WIDTH % 32 == 0;  // in pairs of chunks
  static constexpr int MASK_AT = HAS_BIAS ? HEIGHT * WIDTH * sizeof(Stored) : 0;
  static constexpr int BYTES = MASK_AT + (HAS_MASK ? HEIGHT * WIDTH : 0);
  uint32 start;

  inline Tile<Stored, HEIGHT, WIDTH> bias() const { return {start}; }
  inline Tile<unsigned char, HEIGHT, WIDTH> mask() const { return {start + MASK_AT}; }

  // From query t of a head and from a key on, for at most `rows` queries.
  inline void fetch(const Head& h, int t, int key, int rows, const Options& o, const Problem& p) const {
    if constexpr (HAS_BIAS) {
      const int same = p.bias.query ? rows : HEIGHT;  // one row for all queries, also for those of other heads
      fill<THREADS>(bias(), o.bias + table_offset(p.bias, h, t, key), p.bias.query, same, p.keys - key);
    }
    if constexpr (HAS_MASK) fill<THREADS>(mask(), o.mask + table_offset(p.mask, h, t, key), p.mask.query, rows, p.keys - key);
  }
  // Of the rows of a block, which may be of several heads.
  inline void fetch(const Rows& rows, int key, const Options& o, const Problem& p) const {
    if (!BYTES) return;
    const int present = rows.count - rows.first, t = rows.first % p.queries;
    if (t + (present < HEIGHT ? present : HEIGHT) <= p.queries) return fetch(rows.head_at(0, p), t, key, present, o, p);
    if constexpr (HAS_BIAS) fetch_rows(bias(), o.bias, p.bias, rows, key, p);
    if constexpr (HAS_MASK) fetch_rows(mask(), o.mask, p.mask, rows, key, p);
  }

 private:
  template <class TILE, class T>
  static inline void fetch_rows(const TILE& tile, Global<const T> x, const Table& table, const Rows& rows, int key,
                                const Problem& p) {
    ROLLED for (int i = threadIdx.x; i < TILE::HEIGHT * TILE::CHUNKS; i += THREADS) {
      const int row = i / TILE::CHUNKS, chunk = i % TILE::CHUNKS, column = key + chunk * NUMBERS<T>;
      const bool is_there = rows.is_there(row) && column < p.keys;
      const int64 from = table_offset(table, rows.head_at(row, p), rows.query(row, p), is_there ? column : 0);
      copy_async<T>(tile.chunk_address(row, chunk), x + from, is_there);
    }
  }
};

template <int PARTS> inline void cap(float (&s)[PARTS][4], const Problem& p) {
  if (!SOFTCAP) return;
  UNROLL for (int part = 0; part < PARTS; part++)
    UNROLL for (int n = 0; n < 4; n++) s[part][n] = capped(s[part][n], p);
}

// The score of a product, where the bias is read by number or there is none.
inline float scored(float x, float added, bool is_hidden, const Problem& p) {
  if (BIAS == BY_NUMBER || (!BIAS && !UNSCALED)) x = x * (SOFTCAP ? 1.0f : p.scale) + added;
  return is_hidden ? -infinity<float>() : x;
}

// Products of the rows of this warp with keys from `key` on, at `column` of the tables, become scores, before the band is masked.
template <int PARTS, class SCORES>
inline void score_products(float (&s)[PANELS][PARTS][4], const SCORES& tables, int column, int key, const Rows& rows,
                           const Options& o, const Problem& p) {
  if (PLAIN) return;
  const int lane_column = threadIdx.x % 4 * 2;
  UNROLL for (int panel = 0; panel < PANELS; panel++) {
    cap(s[panel], p);
    if constexpr (SCORES::HAS_BIAS)
      scale_and_add(s[panel], SOFTCAP ? 1.0f : p.scale, tables.bias(), (threadIdx.x / 32 * PANELS + panel) * 16, column);
    UNROLL for (int half = 0; half < 2; half++) {
      const int row = lane_row(panel, half), t = rows.query(row, p);
      const bool is_there = rows.is_there(row);
      const RowOptions options = row_options(rows.head_at(row, p), t, o, p);
      UNROLL for (int part = 0; part < PARTS; part++) {
        uint32 seen = 0;
        if constexpr (SCORES::HAS_MASK) {
          unsigned short two = shared<unsigned short>(tables.mask().element_address(row, column + 8 * part + lane_column))[0];
          seen = two;
        }
        UNROLL for (int n = 0; n < 2; n++) {
          const int j = key + 8 * part + lane_column + n;
          const bool is_read = is_there && j < p.keys;
          float& x = s[panel][part][2 * half + n];
          const float added = BIAS == BY_NUMBER && is_read ? bias_at(options, j, p) : 0.0f;
          const bool is_seen = SCORES::HAS_MASK ? seen >> 8 * n & 255 : !MASK || !is_read || options.mask[j * p.mask.key];
          x = scored(x, added, !is_seen, p);
        }
      }
    }
  }
}
// The same for products of keys, of which this warp has rows from its first on, with queries from t on.
template <int PARTS, class SCORES>
inline void score_products_transposed(float (&s)[PANELS][PARTS][4], const SCORES& tables, int block_start, int t, const Head& h,
                                  const Options& o, const Problem& p) {
  if (PLAIN) return;
  const int lane_column = threadIdx.x % 4 * 2;
  UNROLL for (int panel = 0; panel < PANELS; panel++) {
    cap(s[panel], p);
    if constexpr (SCORES::HAS_BIAS)
      scale_and_add_transposed(s[panel], SOFTCAP ? 1.0f : p.scale, tables.bias(), (threadIdx.x / 32 * PANELS + panel) * 16);
    UNROLL for (int part = 0; part < PARTS; part++)
      UNROLL for (int n = 0; n < 2; n++) {
        const int column = 8 * part + lane_column + n, i = t + column;
        const RowOptions options = row_options(h, i < p.queries ? i : 0, o, p);
        UNROLL for (int half = 0; half < 2; half++) {
          const int row = lane_row(panel, half), j = block_start + row;
          const bool is_there = i < p.queries && j < p.keys;
          float& x = s[panel][part][2 * half + n];
          const float added = BIAS == BY_NUMBER && is_there ? bias_at(options, j, p) : 0.0f;
          bool is_hidden = false;
          if constexpr (SCORES::HAS_MASK) {
            unsigned char one = shared<unsigned char>(tables.mask().element_address(column, row))[0];
            is_hidden = !one;
          } else if (MASK && is_there) is_hidden = !options.mask[j * p.mask.key];
          x = scored(x, added, is_hidden, p);
        }
      }
  }
}

// Scores of the rows of this warp with keys from `key` on, -inf beyond the band.
template <int PARTS>
inline void hide(float (&s)[PANELS][PARTS][4], int key, const Rows& rows, const KeyBounds& bounds, const Problem& p) {
  if (key >= bounds.all_first && key + 8 * PARTS <= bounds.all_past) return;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const int t = rows.query(lane_row(panel, half), p);
      const int lane_key = key + threadIdx.x % 4 * 2;  // offsets from here are compile-time constants
      const int first = first_key(t, rows.head, p) - lane_key, past = past_key(t, rows.head, p) - lane_key;
      UNROLL for (int part = 0; part < PARTS; part++)
        UNROLL for (int n = 0; n < 2; n++)
          if (8 * part + n < first || 8 * part + n >= past) s[panel][part][2 * half + n] = -infinity<float>();
    }
}
