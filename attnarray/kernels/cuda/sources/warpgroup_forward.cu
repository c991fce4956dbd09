// Attention by warpgroups (sm_90a), forward. Reference: attention/core.py, `attend`. Parallel over blocks of queries, as
// attention_forward.cu is. Shared: the queries, two tiles of keys, two of values.
//
// While the units multiply the weights of one tile with its values, and keys of the next tile with queries before that, the threads
// make weights of the next tile: products of keys are a tile ahead. So tiles of keys arrive one step before those of values.
#include "attention.cuh"
#include "attention_forward.cuh"
#include "warpgroup.cuh"

static_assert(PLAIN && !DROPOUT && PANELS == 1 && WARPS % 4 == 0, "plain calls, by whole warpgroups");
using QueryTile = PanelTile<Stored, ROWS, DIM>;
using KeyTile = PanelTile<Stored, ACROSS, DIM>;
using ValueTile = PanelTile<Stored, ACROSS, VALUE_DIM>;
constexpr int VALUES = QueryTile::BYTES + 2 * KeyTile::BYTES;

KERNEL(THREADS) warpgroup_forward(
    Global<const Stored> q, Global<const Stored> k, Global<const Stored> v, Global<Stored> out, Global<float> lse,
    Global<float> part_out, Global<float> part_lse, Global<const Stored> sinks, OPTIONS) {
  const Options o = GIVEN_OPTIONS;
  const Results results = {out, lse, part_out, part_lse, sinks};
  const Rows rows = rows_of_block(o, p);
  int tile, past_tile;
  tiles_of_part(rows, p, tile, past_tile);
  const int first_of_part = tile * ACROSS, past_of_part = past_tile * ACROSS;

  const QueryTile queries = {0};
  Global<const Stored> keys = row_of(k, p.k, rows.batch, rows.kv_head, 0);
  Global<const Stored> values = row_of(v, p.v, rows.batch, rows.kv_head, 0);
  auto key_tile = [](int tile) { return KeyTile{uint32(QueryTile::BYTES + tile % 2 * KeyTile::BYTES)}; };
  auto value_tile = [](int tile) { return ValueTile{uint32(VALUES + tile % 2 * ValueTile::BYTES)}; };
  auto fetch_keys = [&](int tile) {
    const int key = tile * ACROSS;
    if (tile < past_tile) fill<THREADS>(key_tile(tile), keys + key * p.k.row, p.k.row, rows.head.length - key, p.dim);
  };
  auto fetch_values = [&](int tile) {
    const int key = tile * ACROSS;
    fill<THREADS>(value_tile(tile), values + key * p.v.row, p.v.row, rows.head.length - key, p.value_dim);
  };
  auto wait_for_tiles = [] {  // the copies of all threads are there, and nobody reads what is older any more
    wait_copies<0>();
    show_products();
    sync_threads();
  };

  fill_rows(queries, q, p.q, rows, p.dim, p);
  fetch_keys(tile);
  commit_copies();
  const Sight sight = sight_of_warp(rows, p);
  const float factor = unit(p);
  const int row = 64 * warpgroup();
  float s[1][PARTS][4] = {}, sums[1][VALUE_DIM / 8][4] = {}, largest[1][2], total[1][2] = {}, fade[1][2];
  uint32 weights[PARTS / 2][4];
  largest[0][0] = largest[0][1] = -infinity<float>();

  bool has_moved = false;
  auto weigh = [&](int tile) {  // products become weights
    hold(s[0]);
    hide(s, tile * ACROSS, rows, sight, o, p);
    has_moved = raise_largest(s, largest, total, fade, factor);
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
      hold(sums[0]);
      if (has_moved) fade_sums(sums, fade);
      pack_weights<Stored>(weights, s[0]);
      wait_for_tiles();
      if (tile + 1 >= past_tile) break;
      fetch_keys(tile + 2);
      fetch_values(tile + 1);
      commit_copies();
      hold(s[0]), hold(weights), hold(sums[0]);
      begin_products();
      multiply_rows(s[0], queries, row, key_tile(tile + 1));
      commit_products();
      add_weights_times(sums[0], weights, value_tile(tile));
      commit_products();
      wait_products<1>();
      weigh(tile + 1);
    }
    hold(weights), hold(sums[0]);
    begin_products();
    add_weights_times(sums[0], weights, value_tile(tile));
    commit_products();
    wait_products<0>();
    hold(sums[0]);
  }
  wait_copies<0>();
  finish(sums, largest, total, q, k, v, first_of_part, past_of_part, rows, results, o, p);
}
EXPORT(warpgroup_forward)
