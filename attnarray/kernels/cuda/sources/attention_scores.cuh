// From products of queries and keys to scores, and from scores to weights: pair by pair, and for tiles of products in registers.
//
// Tiles are done without a look at what is not finite: a block whose sums are not does its rows again, pair by pair, where what is
// hidden hides all. UNSCALED products stay as they are and are scaled in the exponent. Exponents are powers of 2.
#pragma once
#include "attention.cuh"

// Scores in tiles become exponents: times a factor, less a shift. UNSCALED products are multiplied first, in one instruction with
// the subtraction. With a bias they may be so large that a shift in units of log 2 is rounded by more than all their differences,
// or is beyond all numbers: then the shift, a score like others, is subtracted first.
inline float unit(const Problem& p) { return UNSCALED ? p.scale * LOG2E : LOG2E; }
inline float exponent(float x, float factor, float shift) { return UNSCALED ? x * factor - shift : (x - shift) * factor; }
constexpr float SHIFT_UNIT = UNSCALED ? LN2 : 1, OF_SHIFTS = UNSCALED ? 1 : LOG2E;  // from shifts to scores, and to exponents

// The bias and the mask of one query.
struct RowOptions {
  Global<const Stored> bias;
  Global<const unsigned char> mask;
};
inline RowOptions options_of_row(const Head& h, int t, const Options& o, const Problem& p) {
  RowOptions row = {o.bias, o.mask};
  if (BIAS) row.bias = o.bias + place(p.bias, h, t, 0);
  if (MASK) row.mask = o.mask + place(p.mask, h, t, 0);
  return row;
}
inline float bias_of(const RowOptions& row, int key, const Problem& p) {
  if (!BIAS) return 0;
  Stored stored = row.bias[key * p.bias.key];
  return wide(stored);
}

inline float capped(float product, const Problem& p) {
  return SOFTCAP ? p.softcap * tanh(product * (p.scale / p.softcap)) : product * p.scale;
}
// How the score changes with the product, but for the scale.
inline float slope(float product, const Problem& p) {
  if (!SOFTCAP) return 1;
  const float bent = tanh(product * (p.scale / p.softcap));
  return 1 - bent * bent;
}

// From the product of a query and a key to the score; -inf where bias or mask hide it.
inline float score(float product, const Head& h, int t, int key, const Options& o, const Problem& p) {
  const RowOptions row = options_of_row(h, t, o, p);
  const float added = bias_of(row, key, p);
  if (BIAS && added == -infinity<float>()) return added;
  if (MASK && !row.mask[key * p.mask.key]) return -infinity<float>();
  return capped(product, p) + added;
}
// The weight of the pair, before dropout.
inline float weight_of_pair(float product, float shift, const Head& h, int t, int key, const Options& o, const Problem& p) {
  const float s = score(product, h, t, key, o, p);
  return s == -infinity<float>() ? 0.0f : exp2((s - shift * SHIFT_UNIT) * LOG2E);
}
// The gradient of the score, from the product of cotangent and value besides.
inline float gradient_of_score(float weight, float dproduct, float delta, float kept) {
  if (weight == 0) return 0;
  return weight * ((kept == 0 ? 0.0f : dproduct * kept) - delta);
}
// The gradient of the product.
inline float gradient_of_pair(float product, float dproduct, float shift, float delta, const Head& h, int t, int key,
                              const Options& o, const Problem& p) {
  const float weight = weight_of_pair(product, shift, h, t, key, o, p);
  const float ds = gradient_of_score(weight, dproduct, delta, kept_of(h, t, key, o, p));
  return weight == 0 ? 0.0f : ds * slope(product, p) * p.scale;
}

// The slopes of a tile of products, for the gradients of what they become.
template <int HELD, int PARTS>
inline void slopes(float (&bent)[PANELS][HELD][4], const float (&products)[PANELS][PARTS][4], const Problem& p) {
  if (!SOFTCAP) return;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int part = 0; part < HELD; part++)
      UNROLL for (int n = 0; n < 4; n++) bent[panel][part][n] = slope(products[panel][part][n], p);
}

// Bias and mask of HEIGHT queries by WIDTH keys, as they lie in shared memory from `start` on: those that are read IN_TILES.
template <int HEIGHT, int WIDTH> struct Tables {
  static constexpr bool HAS_BIAS = BIAS == IN_TILES, HAS_MASK = MASK == IN_TILES && WIDTH % 32 == 0;  // in pairs of chunks
  static constexpr int MASK_AT = HAS_BIAS ? HEIGHT * WIDTH * sizeof(Stored) : 0;
  static constexpr int BYTES = MASK_AT + (HAS_MASK ? HEIGHT * WIDTH : 0);
  uint32 start;

  inline Tile<Stored, HEIGHT, WIDTH> bias() const { return {start}; }
  inline Tile<unsigned char, HEIGHT, WIDTH> mask() const { return {start + MASK_AT}; }

  // From query t of a head and from a key on, as far as there are `rows` of queries.
  inline void fetch(const Head& h, int t, int key, int rows, const Options& o, const Problem& p) const {
    if constexpr (HAS_BIAS) {
      const int same = p.bias.query ? rows : HEIGHT;  // one row for all queries, also for those of other heads
      fill<THREADS>(bias(), o.bias + place(p.bias, h, t, key), p.bias.query, same, p.keys - key);
    }
    if constexpr (HAS_MASK) fill<THREADS>(mask(), o.mask + place(p.mask, h, t, key), p.mask.query, rows, p.keys - key);
  }
  // Of the rows of a block, which may be of several heads.
  inline void fetch(const Rows& rows, int key, const Options& o, const Problem& p) const {
    if (!BYTES) return;
    const int there = rows.count - rows.first, t = rows.first % p.queries;
    if (t + (there < HEIGHT ? there : HEIGHT) <= p.queries) return fetch(rows.head_at(0, p), t, key, there, o, p);
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
      const int64 from = place(table, rows.head_at(row, p), rows.query(row, p), is_there ? column : 0);
      copy_async<T>(tile.place(row, chunk), x + from, is_there);
    }
  }
};

template <int PARTS> inline void cap(float (&s)[PARTS][4], const Problem& p) {
  if (!SOFTCAP) return;
  UNROLL for (int part = 0; part < PARTS; part++)
    UNROLL for (int n = 0; n < 4; n++) s[part][n] = capped(s[part][n], p);
}

// The product as a score, where the bias is read by number or there is none.
inline float scored(float x, float added, bool is_hidden, const Problem& p) {
  if (BIAS == BY_NUMBER || (!BIAS && !UNSCALED)) x = x * (SOFTCAP ? 1.0f : p.scale) + added;
  return is_hidden ? -infinity<float>() : x;
}

// Products of the rows of this warp with keys from `key` on, at `column` of the tables, become scores, but for the band.
template <int PARTS, class OF_SCORES>
inline void score_products(float (&s)[PANELS][PARTS][4], const OF_SCORES& tables, int column, int key, const Rows& rows,
                           const Options& o, const Problem& p) {
  if (PLAIN) return;
  const int of_lane = threadIdx.x % 4 * 2;
  UNROLL for (int panel = 0; panel < PANELS; panel++) {
    cap(s[panel], p);
    if constexpr (OF_SCORES::HAS_BIAS)
      scale_and_add(s[panel], SOFTCAP ? 1.0f : p.scale, tables.bias(), (threadIdx.x / 32 * PANELS + panel) * 16, column);
    UNROLL for (int half = 0; half < 2; half++) {
      const int row = lane_row(panel, half), t = rows.query(row, p);
      const bool is_there = rows.is_there(row);
      const RowOptions options = options_of_row(rows.head_at(row, p), t, o, p);
      UNROLL for (int part = 0; part < PARTS; part++) {
        uint32 seen = 0;
        if constexpr (OF_SCORES::HAS_MASK) {
          unsigned short two = shared<unsigned short>(tables.mask().place_of(row, column + 8 * part + of_lane))[0];
          seen = two;
        }
        UNROLL for (int n = 0; n < 2; n++) {
          const int j = key + 8 * part + of_lane + n;
          const bool is_read = is_there && j < p.keys;
          float& x = s[panel][part][2 * half + n];
          const float added = BIAS == BY_NUMBER && is_read ? bias_of(options, j, p) : 0.0f;
          const bool is_seen = OF_SCORES::HAS_MASK ? seen >> 8 * n & 255 : !MASK || !is_read || options.mask[j * p.mask.key];
          x = scored(x, added, !is_seen, p);
        }
      }
    }
  }
}
// The same for products of keys, of which this warp has rows from its first on, with queries from t on.
template <int PARTS, class OF_SCORES>
inline void score_products_turned(float (&s)[PANELS][PARTS][4], const OF_SCORES& tables, int first_of_block, int t, const Head& h,
                                  const Options& o, const Problem& p) {
  if (PLAIN) return;
  const int of_lane = threadIdx.x % 4 * 2;
  UNROLL for (int panel = 0; panel < PANELS; panel++) {
    cap(s[panel], p);
    if constexpr (OF_SCORES::HAS_BIAS)
      scale_and_add_turned(s[panel], SOFTCAP ? 1.0f : p.scale, tables.bias(), (threadIdx.x / 32 * PANELS + panel) * 16);
    UNROLL for (int part = 0; part < PARTS; part++)
      UNROLL for (int n = 0; n < 2; n++) {
        const int column = 8 * part + of_lane + n, i = t + column;
        const RowOptions options = options_of_row(h, i < p.queries ? i : 0, o, p);
        UNROLL for (int half = 0; half < 2; half++) {
          const int row = lane_row(panel, half), j = first_of_block + row;
          const bool is_there = i < p.queries && j < p.keys;
          float& x = s[panel][part][2 * half + n];
          const float added = BIAS == BY_NUMBER && is_there ? bias_of(options, j, p) : 0.0f;
          bool is_hidden = false;
          if constexpr (OF_SCORES::HAS_MASK) {
            unsigned char one = shared<unsigned char>(tables.mask().place_of(column, row))[0];
            is_hidden = !one;
          } else if (MASK && is_there) is_hidden = !options.mask[j * p.mask.key];
          x = scored(x, added, is_hidden, p);
        }
      }
  }
}

// Scores of the rows of this warp with keys from `key` on, -inf beyond the band.
template <int PARTS>
inline void hide(float (&s)[PANELS][PARTS][4], int key, const Rows& rows, const Sight& sight, const Problem& p) {
  if (key >= sight.all_first && key + 8 * PARTS <= sight.all_past) return;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const int t = rows.query(lane_row(panel, half), p);
      const int lane_key = key + threadIdx.x % 4 * 2;  // places are counted from here, so that they are constants
      const int first = first_key(t, rows.head, p) - lane_key, past = past_key(t, rows.head, p) - lane_key;
      UNROLL for (int part = 0; part < PARTS; part++)
        UNROLL for (int n = 0; n < 2; n++)
          if (8 * part + n < first || 8 * part + n >= past) s[panel][part][2 * half + n] = -infinity<float>();
    }
}
