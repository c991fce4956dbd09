// Shared by the wgmma kernels of attention: sources of tiles, and the factors of halves.
#pragma once
#include "attention.cuh"
#include "warpgroup.cuh"

static_assert(PLAIN && !DROPOUT && PANELS == 1 && WARPS % 4 == 0, "plain calls, by whole warpgroups");
constexpr bool IS_SPLIT = sizeof(Stored) == 4;
// Weights that become halves are multiplied by 2^ROOM, or small ones would lose bits as float16.
constexpr float ROOM = IS_SPLIT ? 14 : 0, ROOM_BACK = IS_SPLIT ? 1.0f / (1 << 14) : 1;

// For float32, the halves of q, k, v and dout, and the factors that each batch and head of keys was divided by: all of q, then
// k, v, dout.
struct Halves {
  Global<const Stored> of[4];
  Global<const float> units;
};
#define HALVES                                                                                                  \
  Global<const Stored> q_halves, Global<const Stored> k_halves, Global<const Stored> v_halves,                  \
      Global<const Stored> dout_halves, Global<const float> units
#define GIVEN_HALVES {{q_halves, k_halves, v_halves, dout_halves}, units}
enum Which { Q, K, V, DOUT };

// The source of a tile: rows of `columns` numbers, times `unit`.
struct Source {
  Global<const Stored> from;
  Strides strides;
  int columns;
  float unit;
};

inline Source make_source(Which which, Global<const Stored> x, const Strides& strides, int columns, const Halves& halves,
                        int batch, int kv_head, const Problem& p) {
  if (!IS_SPLIT) return {x, strides, columns, 1};
  const int width = which == Q || which == K ? DIM : VALUE_DIM;
  const bool is_of_queries = which == Q || which == DOUT;
  const int64 head = int64(is_of_queries ? p.queries : p.keys) * width;
  const float unit = halves.units[(int64(which) * p.batch + batch) * p.kv_heads + kv_head];
  return {halves.of[which], {head * (is_of_queries ? p.heads : p.kv_heads), head, width}, width, unit};
}

// wgmma rounds sums toward zero, which adds up over thousands of rows. Sums of float32 start at zero for each tile, and threads
// add them; others are accumulated by wgmma. Where registers are few, those of a tile are computed 64 columns at a time.
template <int PARTS, int AT_ONCE = PARTS> struct TileSums {
  static constexpr int ROUNDS = IS_SPLIT ? PARTS / AT_ONCE : 1;
  float tile_sums[IS_SPLIT ? AT_ONCE : 1][4] = {};

  // Weights times the matrix b: all rounds but the last, synchronously.
  template <class W, class B> inline void multiply_first(float (&sums)[PARTS][4], W& weights, const B& b) {
    if constexpr (ROUNDS > 1)
      UNROLL for (int round = 0; round < ROUNDS - 1; round++) {
        weights.hold(), hold(tile_sums);
        begin_products();
        multiply_weights(tile_sums, weights, b, false, round * AT_ONCE / 8);
        commit_products();
        wait_products<0>();
        add_to(sums, round);
      }
  }
  // The last round, asynchronously.
  template <class W, class B> inline void multiply(float (&sums)[PARTS][4], const W& weights, const B& b) {
    if constexpr (IS_SPLIT) multiply_weights(tile_sums, weights, b, false, (ROUNDS - 1) * AT_ONCE / 8);
    else multiply_weights(sums, weights, b, true);
  }
  // Before these products, as `hold`.
  inline void hold_for_products(float (&sums)[PARTS][4]) { IS_SPLIT ? hold(tile_sums) : hold(sums); }
  // Add the sums of a round, which is done.
  inline void add_to(float (&sums)[PARTS][4], int round = ROUNDS - 1) {
    hold(tile_sums), hold(sums);
    if constexpr (IS_SPLIT)
      UNROLL for (int part = 0; part < AT_ONCE; part++)
        UNROLL for (int n = 0; n < 4; n++) sums[round * AT_ONCE + part][n] += tile_sums[part][n];
  }
};

// The copies of all threads are done and visible to wgmma, and all threads have read the previous tile.
inline void wait_for_tiles() {
  wait_copies<0>();
  show_products();
  sync_threads();
}

template <int PARTS> inline void scale(float (&sums)[PARTS][4], float by) {
  UNROLL for (int part = 0; part < PARTS; part++)
    UNROLL for (int n = 0; n < 4; n++) sums[part][n] *= by;
}

// Gradients of scores become halves, whatever their size: those of a row are multiplied by a power of 2 that makes the largest of
// them so far about 2^12. When the power decreases, the sums of the row are rescaled.
struct RowPowers {
  float power[2];  // of the two rows of this lane

  inline RowPowers() { power[0] = power[1] = IS_SPLIT ? from_bits(254u << 23) : 1; }

  template <int PARTS, int COLUMNS>
  inline void apply(float (&gradients)[PARTS][4], float (&sums)[COLUMNS][4]) {
    if constexpr (!IS_SPLIT) return;
    float most[2] = {0, 0};
    UNROLL for (int part = 0; part < PARTS; part++)
      UNROLL for (int n = 0; n < 4; n++) most[n / 2] = fmaxf(most[n / 2], fabs(gradients[part][n]));
    bool is_too_large = false;
    UNROLL for (int half = 0; half < 2; half++) {
      most[half] = fmaxf(most[half], shuffle_xor(most[half], 1));
      most[half] = fmaxf(most[half], shuffle_xor(most[half], 2));
      is_too_large |= most[half] * power[half] > 32768.0f;
    }
    if (any_lane(is_too_large)) {
      float fall[2] = {1, 1};
      UNROLL for (int half = 0; half < 2; half++)
        if (most[half] * power[half] > 32768.0f) {
          const int exponent = float_bits(most[half]) >> 23;  // with 127 added
          const float lower = from_bits(uint32(exponent < 12 ? 254 : 266 - exponent) << 23);
          fall[half] = lower / power[half], power[half] = lower;
        }
      UNROLL for (int column = 0; column < COLUMNS; column++)
        UNROLL for (int n = 0; n < 4; n++) sums[column][n] *= fall[n / 2];
    }
    UNROLL for (int part = 0; part < PARTS; part++)
      UNROLL for (int n = 0; n < 4; n++) gradients[part][n] *= power[n / 2];
  }
  // Sums without the powers, times a factor.
  template <int COLUMNS> inline void undo(float (&sums)[COLUMNS][4], float by) const {
    if constexpr (IS_SPLIT)
      UNROLL for (int column = 0; column < COLUMNS; column++)
        UNROLL for (int n = 0; n < 4; n++) sums[column][n] *= by / power[n / 2];
  }
};
