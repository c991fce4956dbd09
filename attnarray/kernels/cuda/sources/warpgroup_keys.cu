// Attention with wgmma (sm_90a), the gradients of keys and values. Reference: attention/engine.py, `attention_backward`.
// Parallel over blocks of keys; each loops over the queries of all heads that share them. Shared: keys and values, three tiles
// of queries and cotangents with their shifts and deltas: one being copied, one being processed, and the previous one, whose
// last product may not be done.
//
// Scores are computed transposed, keys by queries, and WANTS_DK and WANTS_DV select the gradients, as in attention_keys.cu.
#include "attention_keys.cuh"
#include "warpgroup_attention.cuh"

static_assert((WANTS_DK && WANTS_DV) || IS_SPLIT, "registers hold the sums of both");
using KeyTile = PanelTile<Stored, ROWS, DIM>;
using ValueTile = PanelTile<Stored, ROWS, VALUE_DIM>;
using QueryTile = PanelTile<Stored, ACROSS, DIM>;
using CotangentTile = PanelTile<Stored, ACROSS, VALUE_DIM>;
constexpr int STAGE = QueryTile::BYTES + CotangentTile::BYTES, TILES = KeyTile::BYTES + ValueTile::BYTES;
constexpr int ROW_NUMBERS = TILES + 3 * STAGE, EACH = 2 * ACROSS * sizeof(float);  // shifts, then deltas of a tile

KERNEL(THREADS) warpgroup_keys(
    Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k, Global<const Stored> v,
    Global<const float> shift, Global<const float> delta, Global<Stored> dk, Global<Stored> dv, HALVES, OPTIONS) {
  const Options o = GIVEN_OPTIONS;
  const int batch = blockIdx.x / p.kv_heads, kv_head = blockIdx.x % p.kv_heads, group = p.heads / p.kv_heads;
  const int block_start = blockIdx.y * ROWS;
  const Head first_head = make_head(batch, kv_head * group, o, p);
  int first, past;
  visible_queries(block_start, block_start + ROWS, first_head, p, first, past);
  first = first / ACROSS * ACROSS;
  const int past_head = past > first ? first_head.head + group : first_head.head;

  const KeyTile keys = {0};
  const ValueTile values = {KeyTile::BYTES};
  const Halves halves = GIVEN_HALVES;
  const Source q_source = make_source(Q, q, p.q, p.dim, halves, batch, kv_head, p);
  const Source k_source = make_source(K, k, p.k, p.dim, halves, batch, kv_head, p);
  const Source v_source = make_source(V, v, p.v, p.value_dim, halves, batch, kv_head, p);
  const Source dout_source = make_source(DOUT, dout, p.dout, p.value_dim, halves, batch, kv_head, p);
  auto stage = [](int step) { return uint32(TILES + step % 3 * STAGE); };
  auto numbers = [](int step) { return uint32(ROW_NUMBERS + step % 3 * EACH); };
  auto fetch = [&](int step, int head, int t) {
    const int present = p.queries - t;
    fill<THREADS>(QueryTile{stage(step)}, row_pointer(q_source.from, q_source.strides, batch, head, t),
                  q_source.strides.row, present, q_source.columns);
    fill<THREADS>(CotangentTile{stage(step) + QueryTile::BYTES},
                  row_pointer(dout_source.from, dout_source.strides, batch, head, t), dout_source.strides.row, present,
                  dout_source.columns);
    const int64 number = (int64(batch) * p.heads + head) * p.queries + t;
    ROLLED for (int n = threadIdx.x; n < ACROSS; n += THREADS) {  // zeros beyond the queries, whose cotangents are zeros
      copy_number_async(numbers(step) + n * 4, shift + number + n, n < present);
      copy_number_async(numbers(step) + (ACROSS + n) * 4, delta + number + n, n < present);
    }
  };
  fill<THREADS>(keys, row_pointer(k_source.from, k_source.strides, batch, kv_head, block_start), k_source.strides.row,
                p.keys - block_start, k_source.columns);
  fill<THREADS>(values, row_pointer(v_source.from, v_source.strides, batch, kv_head, block_start), v_source.strides.row,
                p.keys - block_start, v_source.columns);
  int head = first_head.head, t = first;
  if (head < past_head) fetch(0, head, t);
  commit_copies();

  const float factor = unit(p) * q_source.unit * k_source.unit, product_unit = v_source.unit * dout_source.unit;
  RowPowers powers;
  TileSums<DIM / 8> dk_tile_sums;
  TileSums<VALUE_DIM / 8> dv_tile_sums;
  const int row = 64 * warpgroup(), warp_key = block_start + threadIdx.x / 32 * 16, lane_column = threadIdx.x % 4 * 2;
  float s[1][OTHERS][4] = {}, d[OTHERS][4] = {};
  float dk_sums[1][DIM / 8][4] = {}, dv_sums[1][VALUE_DIM / 8][4] = {};
  auto add_up = [&] {  // add the products of a tile
    if (WANTS_DV) dv_tile_sums.add_to(dv_sums[0]);
    if (WANTS_DK) dk_tile_sums.add_to(dk_sums[0]);
  };

  for (int step = 0; head < past_head; step++) {  // over the tiles of one head after the other
    wait_for_tiles();  // all threads have read the tile before the last
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
    if (WANTS_DK) multiply_rows(d, values, row, cotangent_tile);
    commit_products();
    wait_products<IS_SPLIT ? 0 : 1>();  // and those of the previous tile
    hold(s[0]), add_up();
    const int last = (t + ACROSS < p.queries ? t + ACROSS : p.queries) - 1;
    Head h = first_head;
    h.head = head;
    const bool is_edge = warp_key < first_key(last, h, p) || warp_key + 16 > past_key(t, h, p);
    if (is_edge) hide_transposed(s, block_start, t, h, p);
    UNROLL for (int part = 0; part < OTHERS; part++)
      UNROLL for (int n = 0; n < 2; n++) {
        const float high = shifts[8 * part + lane_column + n] - ROOM;
        UNROLL for (int half = 0; half < 2; half++) {
          float& x = s[0][part][2 * half + n];
          x = exp2_fast(x * factor - high);
        }
      }
    Weights<Stored, OTHERS / 2> weights, gradients;
    if (WANTS_DV) {
      weights.pack(s[0]);
      weights.hold(), dv_tile_sums.hold_for_products(dv_sums[0]);
    }
    if (!IS_SPLIT) {  // else sums of keys may be rescaled, which must not overlap with wgmma
      begin_products();
      dv_tile_sums.multiply(dv_sums[0], weights, cotangent_tile);
      commit_products();
      wait_products<1>();
    }
    if (WANTS_DK) {
      hold(d);
      UNROLL for (int part = 0; part < OTHERS; part++)
        UNROLL for (int n = 0; n < 2; n++) {
          const float less = deltas[8 * part + lane_column + n];
          UNROLL for (int half = 0; half < 2; half++)
            s[0][part][2 * half + n] *= d[part][2 * half + n] * product_unit - less;
        }
      powers.apply(s[0], dk_sums[0]);
      gradients.pack(s[0]);
      gradients.hold(), dk_tile_sums.hold_for_products(dk_sums[0]);
    }
    begin_products();
    if (WANTS_DV && IS_SPLIT) dv_tile_sums.multiply(dv_sums[0], weights, cotangent_tile);
    if (WANTS_DK) dk_tile_sums.multiply(dk_sums[0], gradients, query_tile);
    commit_products();
    head = next_head, t = next_t;
  }
  wait_copies<0>();
  wait_products<0>();
  add_up();
  powers.undo(dk_sums[0], q_source.unit * ROOM_BACK);
  if (IS_SPLIT) scale(dv_sums[0], dout_source.unit * ROOM_BACK);
  finish(dk_sums, dv_sums, dout, q, k, v, shift, delta, dk, dv, batch, kv_head, block_start, o, p);
}
EXPORT(warpgroup_keys)
