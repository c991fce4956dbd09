// Attention by warpgroups (sm_90a), forward. Reference: attention/engine.py, `attention`. Parallel over blocks of queries, as
// attention_forward.cu is. Shared: the queries, two tiles of keys, two of values.
//
// While the units multiply the weights of one tile with its values, and keys of the next tile with queries before that, the threads
// make weights of the next tile: products of keys are a tile ahead. So tiles of keys arrive one step before those of values.
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
  const Rows rows = rows_of_block(o, p);
  int tile, past_tile;
  tiles_of_part(rows, p, tile, past_tile);
  const int first_of_part = tile * ACROSS, past_of_part = past_tile * ACROSS;

  const QueryTile queries = {0};
  const Halves halves = GIVEN_HALVES;
  const Source of_q = source_of(Q, q, p.q, p.dim, halves, rows.batch, rows.kv_head, p);
  const Source of_k = source_of(K, k, p.k, p.dim, halves, rows.batch, rows.kv_head, p);
  const Source of_v = source_of(V, v, p.v, p.value_dim, halves, rows.batch, rows.kv_head, p);
  Global<const Stored> keys = row_of(of_k.from, of_k.strides, rows.batch, rows.kv_head, 0);
  Global<const Stored> values = row_of(of_v.from, of_v.strides, rows.batch, rows.kv_head, 0);
  auto key_tile = [](int tile) { return KeyTile{uint32(QueryTile::BYTES + tile % 2 * KeyTile::BYTES)}; };
  auto value_tile = [](int tile) { return ValueTile{uint32(VALUES + tile % 2 * ValueTile::BYTES)}; };
  auto fetch_keys = [&](int tile) {
    const int key = tile * ACROSS;
    const int64 apart = of_k.strides.row;
    if (tile < past_tile) fill<THREADS>(key_tile(tile), keys + key * apart, apart, rows.head.length - key, of_k.columns);
  };
  auto fetch_values = [&](int tile) {
    const int key = tile * ACROSS;
    const int64 apart = of_v.strides.row;
    fill<THREADS>(value_tile(tile), values + key * apart, apart, rows.head.length - key, of_v.columns);
  };

  fill_rows(queries, of_q.from, of_q.strides, rows, of_q.columns, p);
  fetch_keys(tile);
  commit_copies();
  const Sight sight = sight_of_warp(rows, p);
  const float factor = unit(p) * of_q.unit * of_k.unit;
  const int row = 64 * warpgroup();
  float s[1][PARTS][4] = {}, sums[1][VALUE_DIM / 8][4] = {}, largest[1][2], total[1][2] = {}, fade[1][2];
  Weights<Stored, PARTS / 2> weights;
  TileSums<VALUE_DIM / 8> of_tile;
  largest[0][0] = largest[0][1] = -infinity<float>();

  bool has_moved = false;
  auto weigh = [&](int tile) {  // products become weights
    hold(s[0]);
    hide(s, tile * ACROSS, rows, sight, p);
    has_moved = raise_largest(s, largest, total, fade, factor, ROOM);
    exponentiate(s, largest, total, factor, 0, rows, o, p);
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
    weigh(tile);
    for (;; tile++) {
      wait_products<0>();
      of_tile.add_to(sums[0]);
      if (has_moved) fade_sums(sums, fade);
      weights.pack(s[0]);
      wait_for_tiles();
      if (tile + 1 >= past_tile) break;
      fetch_keys(tile + 2);
      fetch_values(tile + 1);
      commit_copies();
      hold(s[0]), weights.hold(), of_tile.hold_for_products(sums[0]);
      begin_products();
      multiply_rows(s[0], queries, row, key_tile(tile + 1));
      commit_products();
      of_tile.multiply(sums[0], weights, value_tile(tile));
      commit_products();
      wait_products<1>();
      weigh(tile + 1);
    }
    weights.hold(), of_tile.hold_for_products(sums[0]);
    begin_products();
    of_tile.multiply(sums[0], weights, value_tile(tile));
    commit_products();
    wait_products<0>();
    of_tile.add_to(sums[0]);
  }
  wait_copies<0>();
  if (IS_SPLIT) scale(sums[0], of_v.unit);
  finish(sums, largest, total, q, k, v, first_of_part, past_of_part, rows, results, o, p);
}
EXPORT(warpgroup_forward)
