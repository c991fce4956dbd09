// Attention by warpgroups (sm_90a), the gradients of keys and values. Reference: attention/engine.py, `attention_backward`. Parallel
// over blocks of keys; each goes over the queries of all heads that share them. Shared: keys and values, three tiles of queries and
// cotangents with their shifts and deltas: one that arrives, one that is worked on, and the one before, of which the last product
// may still be under way.
//
// Scores are made turned around, keys by queries, and OF_KEYS and OF_VALUES say which gradients, as in attention_keys.cu.
#include "attention_keys.cuh"
#include "warpgroup_attention.cuh"

static_assert((OF_KEYS && OF_VALUES) || IS_SPLIT, "registers hold the sums of both");
using KeyTile = PanelTile<Stored, ROWS, DIM>;
using ValueTile = PanelTile<Stored, ROWS, VALUE_DIM>;
using QueryTile = PanelTile<Stored, ACROSS, DIM>;
using CotangentTile = PanelTile<Stored, ACROSS, VALUE_DIM>;
constexpr int STAGE = QueryTile::BYTES + CotangentTile::BYTES, TILES = KeyTile::BYTES + ValueTile::BYTES;
constexpr int NUMBERS_OF_ROWS = TILES + 3 * STAGE, EACH = 2 * ACROSS * sizeof(float);  // shifts, then deltas of a tile

KERNEL(THREADS) warpgroup_keys(
    Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k, Global<const Stored> v,
    Global<const float> shift, Global<const float> delta, Global<Stored> dk, Global<Stored> dv, HALVES, OPTIONS) {
  const Options o = GIVEN_OPTIONS;
  const int batch = blockIdx.x / p.kv_heads, kv_head = blockIdx.x % p.kv_heads, group = p.heads / p.kv_heads;
  const int first_of_block = blockIdx.y * ROWS;
  const Head first_head = head_of(batch, kv_head * group, o, p);
  int first, past;
  queries_of_keys(first_of_block, first_of_block + ROWS, first_head, p, first, past);
  first = first / ACROSS * ACROSS;
  const int past_head = past > first ? first_head.head + group : first_head.head;

  const KeyTile keys = {0};
  const ValueTile values = {KeyTile::BYTES};
  const Halves halves = GIVEN_HALVES;
  const Source of_q = source_of(Q, q, p.q, p.dim, halves, batch, kv_head, p);
  const Source of_k = source_of(K, k, p.k, p.dim, halves, batch, kv_head, p);
  const Source of_v = source_of(V, v, p.v, p.value_dim, halves, batch, kv_head, p);
  const Source of_dout = source_of(DOUT, dout, p.dout, p.value_dim, halves, batch, kv_head, p);
  auto stage = [](int step) { return uint32(TILES + step % 3 * STAGE); };
  auto numbers = [](int step) { return uint32(NUMBERS_OF_ROWS + step % 3 * EACH); };
  auto fetch = [&](int step, int head, int t) {
    const int there = p.queries - t;
    fill<THREADS>(QueryTile{stage(step)}, row_of(of_q.from, of_q.strides, batch, head, t), of_q.strides.row, there,
                  of_q.columns);
    fill<THREADS>(CotangentTile{stage(step) + QueryTile::BYTES}, row_of(of_dout.from, of_dout.strides, batch, head, t),
                  of_dout.strides.row, there, of_dout.columns);
    const int64 number = (int64(batch) * p.heads + head) * p.queries + t;
    ROLLED for (int n = threadIdx.x; n < ACROSS; n += THREADS) {  // zeros beyond the queries meet cotangents of zeros
      copy_number_async(numbers(step) + n * 4, shift + number + n, n < there);
      copy_number_async(numbers(step) + (ACROSS + n) * 4, delta + number + n, n < there);
    }
  };
  fill<THREADS>(keys, row_of(of_k.from, of_k.strides, batch, kv_head, first_of_block), of_k.strides.row,
                p.keys - first_of_block, of_k.columns);
  fill<THREADS>(values, row_of(of_v.from, of_v.strides, batch, kv_head, first_of_block), of_v.strides.row,
                p.keys - first_of_block, of_v.columns);
  int head = first_head.head, t = first;
  if (head < past_head) fetch(0, head, t);
  commit_copies();

  const float factor = unit(p) * of_q.unit * of_k.unit, of_products = of_v.unit * of_dout.unit;
  RowPowers powers;
  TileSums<DIM / 8> of_keys;
  TileSums<VALUE_DIM / 8> of_values;
  const int row = 64 * warpgroup(), warp_key = first_of_block + threadIdx.x / 32 * 16, lane_column = threadIdx.x % 4 * 2;
  float s[1][OTHERS][4] = {}, d[OTHERS][4] = {};
  float sums_of_keys[1][DIM / 8][4] = {}, sums_of_values[1][VALUE_DIM / 8][4] = {};
  auto add_up = [&] {  // what the products of a tile have left
    if (OF_VALUES) of_values.add_to(sums_of_values[0]);
    if (OF_KEYS) of_keys.add_to(sums_of_keys[0]);
  };

  for (int step = 0; head < past_head; step++) {  // over the tiles of one head after the other
    wait_for_tiles();  // nobody reads the one before the last any more
    const bool is_last = t + ACROSS >= past;
    const int next_head = head + is_last, next_t = is_last ? first : t + ACROSS;
    if (next_head < past_head) fetch(step + 1, next_head, next_t);
    commit_copies();
    const QueryTile query_tile = {stage(step)};
    const CotangentTile cotangent_tile = {stage(step) + QueryTile::BYTES};
    const Shared<float> shifts = shared<float>(numbers(step)), deltas = shifts + ACROSS;

    hold(s[0]), hold(d);
    begin_products();
    multiply_rows(s[0], keys, row, query_tile);
    commit_products();
    if (OF_KEYS) multiply_rows(d, values, row, cotangent_tile);
    commit_products();
    wait_products<IS_SPLIT ? 0 : 1>();  // and those of the tile before
    hold(s[0]), add_up();
    const int last = (t + ACROSS < p.queries ? t + ACROSS : p.queries) - 1;
    Head h = first_head;
    h.head = head;
    const bool is_edge = warp_key < first_key(last, h, p) || warp_key + 16 > past_key(t, h, p);
    if (is_edge) hide_turned(s, first_of_block, t, h, p);
    UNROLL for (int part = 0; part < OTHERS; part++)
      UNROLL for (int n = 0; n < 2; n++) {
        const float high = shifts[8 * part + lane_column + n] - ROOM;
        UNROLL for (int half = 0; half < 2; half++) {
          float& x = s[0][part][2 * half + n];
          x = exp2_fast(x * factor - high);
        }
      }
    Weights<Stored, OTHERS / 2> weights, gradients;
    if (OF_VALUES) {
      weights.pack(s[0]);
      weights.hold(), of_values.hold_for_products(sums_of_values[0]);
    }
    if (!IS_SPLIT) {  // else sums of keys may have to fall, and the compiler wants nothing under way then
      begin_products();
      of_values.multiply(sums_of_values[0], weights, cotangent_tile);
      commit_products();
      wait_products<1>();
    }
    if (OF_KEYS) {
      hold(d);
      UNROLL for (int part = 0; part < OTHERS; part++)
        UNROLL for (int n = 0; n < 2; n++) {
          const float less = deltas[8 * part + lane_column + n];
          UNROLL for (int half = 0; half < 2; half++)
            s[0][part][2 * half + n] *= d[part][2 * half + n] * of_products - less;
        }
      powers.apply(s[0], sums_of_keys[0]);
      gradients.pack(s[0]);
      gradients.hold(), of_keys.hold_for_products(sums_of_keys[0]);
    }
    begin_products();
    if (OF_VALUES && IS_SPLIT) of_values.multiply(sums_of_values[0], weights, cotangent_tile);
    if (OF_KEYS) of_keys.multiply(sums_of_keys[0], gradients, query_tile);
    commit_products();
    head = next_head, t = next_t;
  }
  wait_copies<0>();
  wait_products<0>();
  add_up();
  powers.undo(sums_of_keys[0], of_q.unit * ROOM_BACK);
  if (IS_SPLIT) scale(sums_of_values[0], of_dout.unit * ROOM_BACK);
  finish(sums_of_keys, sums_of_values, dout, q, k, v, shift, delta, dk, dv, batch, kv_head, first_of_block, o, p);
}
EXPORT(warpgroup_keys)
