// Attention by warpgroups (sm_90a), the gradients of keys and values. Reference: attention/core.py, `attend_backward`. Parallel
// over blocks of keys; each goes over the queries of all heads that share them. Shared: keys and values, three tiles of queries and
// cotangents with their shifts and deltas: one that arrives, one that is worked on, and the one before, of which the last product
// may still be under way.
//
// Scores are made turned around, keys by queries, as in attention_keys.cu.
#include "attention.cuh"
#include "attention_keys.cuh"
#include "warpgroup.cuh"

static_assert(PLAIN && !DROPOUT && PANELS == 1 && WARPS % 4 == 0, "plain calls, by whole warpgroups");
static_assert(OF_KEYS && OF_VALUES, "registers hold the sums of both");
using KeyTile = PanelTile<Stored, ROWS, DIM>;
using ValueTile = PanelTile<Stored, ROWS, VALUE_DIM>;
using QueryTile = PanelTile<Stored, ACROSS, DIM>;
using CotangentTile = PanelTile<Stored, ACROSS, VALUE_DIM>;
constexpr int STAGE = QueryTile::BYTES + CotangentTile::BYTES, TILES = KeyTile::BYTES + ValueTile::BYTES;
constexpr int NUMBERS_OF_ROWS = TILES + 3 * STAGE, EACH = 2 * ACROSS * sizeof(float);  // shifts, then deltas of a tile

KERNEL(THREADS) warpgroup_keys(
    Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k, Global<const Stored> v,
    Global<const float> shift, Global<const float> delta, Global<Stored> dk, Global<Stored> dv, OPTIONS) {
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
  auto stage = [](int step) { return uint32(TILES + step % 3 * STAGE); };
  auto numbers = [](int step) { return uint32(NUMBERS_OF_ROWS + step % 3 * EACH); };
  auto fetch = [&](int step, int head, int t) {
    const int there = p.queries - t;
    fill<THREADS>(QueryTile{stage(step)}, row_of(q, p.q, batch, head, t), p.q.row, there, p.dim);
    fill<THREADS>(CotangentTile{stage(step) + QueryTile::BYTES}, row_of(dout, p.dout, batch, head, t), p.dout.row, there,
                  p.value_dim);
    const int64 number = (int64(batch) * p.heads + head) * p.queries + t;
    ROLLED for (int n = threadIdx.x; n < ACROSS; n += THREADS) {  // zeros beyond the queries meet cotangents of zeros
      copy_number_async(numbers(step) + n * 4, shift + number + n, n < there);
      copy_number_async(numbers(step) + (ACROSS + n) * 4, delta + number + n, n < there);
    }
  };
  fill<THREADS>(keys, row_of(k, p.k, batch, kv_head, first_of_block), p.k.row, p.keys - first_of_block, p.dim);
  fill<THREADS>(values, row_of(v, p.v, batch, kv_head, first_of_block), p.v.row, p.keys - first_of_block, p.value_dim);
  int head = first_head.head, t = first;
  if (head < past_head) fetch(0, head, t);
  commit_copies();

  const float factor = unit(p);
  const int row = 64 * warpgroup(), warp_key = first_of_block + threadIdx.x / 32 * 16, lane_column = threadIdx.x % 4 * 2;
  float s[1][OTHERS][4] = {}, d[OTHERS][4] = {};
  float sums_of_keys[1][DIM / 8][4] = {}, sums_of_values[1][VALUE_DIM / 8][4] = {};

  for (int step = 0; head < past_head; step++) {  // over the tiles of one head after the other
    wait_copies<0>();
    show_products();
    sync_threads();  // the tile is there, and nobody reads the one before the last any more
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
    multiply_rows(d, values, row, cotangent_tile);
    commit_products();
    wait_products<1>();  // and those of the tile before
    hold(s[0]), hold(sums_of_values[0]), hold(sums_of_keys[0]);
    const int last = (t + ACROSS < p.queries ? t + ACROSS : p.queries) - 1;
    Head h = first_head;
    h.head = head;
    const bool is_edge = warp_key < first_key(last, h, p) || warp_key + 16 > past_key(t, h, p);
    if (is_edge) hide_turned(s, first_of_block, t, h, o, p);
    UNROLL for (int part = 0; part < OTHERS; part++)
      UNROLL for (int n = 0; n < 2; n++) {
        const float high = shifts[8 * part + lane_column + n];
        UNROLL for (int half = 0; half < 2; half++) {
          float& x = s[0][part][2 * half + n];
          x = exp2_fast(x * factor - high);
        }
      }
    uint32 weights[OTHERS / 2][4], gradients[OTHERS / 2][4];
    pack_weights<Stored>(weights, s[0]);
    hold(weights), hold(sums_of_values[0]);
    begin_products();
    add_weights_times(sums_of_values[0], weights, cotangent_tile);
    commit_products();
    wait_products<1>();
    hold(d);
    UNROLL for (int part = 0; part < OTHERS; part++)
      UNROLL for (int n = 0; n < 2; n++) {
        const float less = deltas[8 * part + lane_column + n];
        UNROLL for (int half = 0; half < 2; half++) s[0][part][2 * half + n] *= d[part][2 * half + n] - less;
      }
    pack_weights<Stored>(gradients, s[0]);
    hold(gradients), hold(sums_of_keys[0]);
    begin_products();
    add_weights_times(sums_of_keys[0], gradients, query_tile);
    commit_products();
    head = next_head, t = next_t;
  }
  wait_copies<0>();
  wait_products<0>();
  hold(sums_of_values[0]), hold(sums_of_keys[0]);
  finish(sums_of_keys, sums_of_values, dout, q, k, v, shift, delta, dk, dv, batch, kv_head, first_of_block, o, p);
}
EXPORT(warpgroup_keys)
