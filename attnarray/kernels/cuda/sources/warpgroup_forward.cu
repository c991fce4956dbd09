// Attention with wgmma (sm_90a), forward. Reference: attention/engine.py, `attention`. Parallel over blocks of queries, as
// attention_forward.cu is. Shared: the queries, two tiles of keys, two of values.
//
// wgmma multiplies keys of the next tile with queries, and then weights of one tile with its values, while the threads compute
// the weights of the next tile: products of keys are a tile ahead. So tiles of keys are copied one step before those of values.
#include "attention_forward.cuh"
#include "warpgroup_attention.cuh"

using QueryTile = PanelTile<Stored, ROWS, DIM>;
using KeyTile = PanelTile<Stored, ACROSS, DIM>;
using ValueTile = PanelTile<Stored, ACROSS, VALUE_DIM>;
constexpr int VALUES = QueryTile::BYTES + 2 * KeyTile::BYTES;

KERNEL(THREADS) warpgroup_forward(
    Global<const Stored> q, Global<const Stored> k, Global<const Stored> v, Global<Stored> out, Global<float> lse,
    Global<float> part_out, Global<float> part_lse, Global<const Stored> sinks, HALVES, OPTIONS) {
  const Options o = GIVEN_OPTIONS;
  const Results results = {out, lse, part_out, part_lse, sinks};
  const Rows rows = block_rows(o, p);
  int tile, past_tile;
  part_tiles(rows, p, tile, past_tile);
  const int part_start = tile * ACROSS, part_end = past_tile * ACROSS;

  const QueryTile queries = {0};
  const Halves halves = GIVEN_HALVES;
  const Source q_source = make_source(Q, q, p.q, p.dim, halves, rows.batch, rows.kv_head, p);
  const Source k_source = make_source(K, k, p.k, p.dim, halves, rows.batch, rows.kv_head, p);
  const Source v_source = make_source(V, v, p.v, p.value_dim, halves, rows.batch, rows.kv_head, p);
  Global<const Stored> keys = row_pointer(k_source.from, k_source.strides, rows.batch, rows.kv_head, 0);
  Global<const Stored> values = row_pointer(v_source.from, v_source.strides, rows.batch, rows.kv_head, 0);
  auto key_tile = [](int tile) { return KeyTile{uint32(QueryTile::BYTES + tile % 2 * KeyTile::BYTES)}; };
  auto value_tile = [](int tile) { return ValueTile{uint32(VALUES + tile % 2 * ValueTile::BYTES)}; };
  auto fetch_keys = [&](int tile) {
    const int key = tile * ACROSS;
    const int64 apart = k_source.strides.row;
    if (tile < past_tile) fill<THREADS>(key_tile(tile), keys + key * apart, apart, rows.head.length - key, k_source.columns);
  };
  auto fetch_values = [&](int tile) {
    const int key = tile * ACROSS;
    const int64 apart = v_source.strides.row;
    fill<THREADS>(value_tile(tile), values + key * apart, apart, rows.head.length - key, v_source.columns);
  };

  fill_rows(queries, q_source.from, q_source.strides, rows, q_source.columns, p);
  fetch_keys(tile);
  commit_copies();
  const KeyBounds bounds = warp_bounds(rows, p);
  const float factor = unit(p) * q_source.unit * k_source.unit;
  const int row = 64 * warpgroup();
  float s[1][PARTS][4] = {}, sums[1][VALUE_DIM / 8][4] = {}, row_max[1][2], row_sum[1][2] = {}, rescale[1][2];
  Weights<Stored, PARTS / 2> weights;
  TileSums<VALUE_DIM / 8> tile_sums;
  row_max[0][0] = row_max[0][1] = -infinity<float>();

  bool has_moved = false;
  auto to_weights = [&](int tile) {  // from products to weights
    hold(s[0]);
    hide(s, tile * ACROSS, rows, bounds, p);
    has_moved = update_row_max(s, row_max, row_sum, rescale, factor, ROOM);
    exponentiate(s, row_max, row_sum, factor, 0, rows, o, p);
  };

  if (tile < past_tile) {
    wait_for_tiles();
    fetch_keys(tile + 1);
    fetch_values(tile);
    commit_copies();
    hold(s[0]);
    begin_products();
    multiply_rows(s[0], queries, row, key_tile(tile));
    commit_products();
    wait_products<0>();
    to_weights(tile);
    for (;; tile++) {
      wait_products<0>();
      tile_sums.add_to(sums[0]);
      if (has_moved) rescale_sums(sums, rescale);
      weights.pack(s[0]);
      wait_for_tiles();
      if (tile + 1 >= past_tile) break;
      fetch_keys(tile + 2);
      fetch_values(tile + 1);
      commit_copies();
      hold(s[0]), weights.hold(), tile_sums.hold_for_products(sums[0]);
      begin_products();
      multiply_rows(s[0], queries, row, key_tile(tile + 1));
      commit_products();
      tile_sums.multiply(sums[0], weights, value_tile(tile));
      commit_products();
      wait_products<1>();
      to_weights(tile + 1);
    }
    weights.hold(), tile_sums.hold_for_products(sums[0]);
    begin_products();
    tile_sums.multiply(sums[0], weights, value_tile(tile));
    commit_products();
    wait_products<0>();
    tile_sums.add_to(sums[0]);
  }
  wait_copies<0>();
  if (IS_SPLIT) scale(sums[0], v_source.unit);
  finish(sums, row_max, row_sum, q, k, v, part_start, part_end, rows, results, o, p);
}
EXPORT(warpgroup_forward)
