// Attention on tensor cores, the gradient of a bias. Reference: attention/core.py, `attend_backward`. Parallel over tiles of the
// bias; each block goes over all scores that its tile was added to, and sums their gradients in registers, so that there is no
// array of queries by keys but the result. Shared: a tile each of queries, keys, cotangents and values.
#include "attention.cuh"

using QueryTile = Tile<Stored, ROWS, DIM>;
using CotangentTile = Tile<Stored, ROWS, VALUE_DIM>;
using KeyTile = Tile<Stored, ACROSS, DIM>;
using ValueTile = Tile<Stored, ACROSS, VALUE_DIM>;

KERNEL(THREADS) attention_bias(
    Global<const Stored> dout, Global<const Stored> q, Global<const Stored> k, Global<const Stored> v,
    Global<const float> shift, Global<const float> delta, Global<Stored> dbias, int64 batches, int64 heads, int64 queries,
    int64 keys, OPTIONS) {
  const Options o = GIVEN_OPTIONS;
  const int of_batch = blockIdx.x / heads, of_head = blockIdx.x % heads;
  const int first_t = queries == 1 ? 0 : blockIdx.y * ROWS, past_t = queries == 1 ? p.queries : first_t + ROWS;
  const int first_j = keys == 1 ? 0 : blockIdx.z * ACROSS, past_j = keys == 1 ? p.keys : first_j + ACROSS;
  const QueryTile query_tile = {0};
  const CotangentTile cotangent_tile = {query_tile.start + QueryTile::BYTES};
  const KeyTile key_tile = {cotangent_tile.start + CotangentTile::BYTES};
  const ValueTile value_tile = {key_tile.start + KeyTile::BYTES};
  uint32 of_queries[PANELS], of_cotangents[PANELS];
  UNROLL for (int panel = 0; panel < PANELS; panel++) {
    const int row = (threadIdx.x / 32 * PANELS + panel) * 16;
    of_queries[panel] = query_tile.left(row), of_cotangents[panel] = cotangent_tile.left(row);
  }
  const float factor = unit(p);
  float sums[PANELS][ACROSS / 8][4] = {};

  for (int batch = batches == 1 ? 0 : of_batch; batch < (batches == 1 ? p.batch : of_batch + 1); batch++)
    for (int head = heads == 1 ? 0 : of_head; head < (heads == 1 ? p.heads : of_head + 1); head++) {
      const Head h = head_of(batch, head, o, p);
      for (int t = first_t; t < past_t && t < p.queries; t += ROWS) {
        const int last = (t + ROWS < p.queries ? t + ROWS : p.queries) - 1;
        for (int j = first_j; j < past_j && j < p.keys; j += ACROSS) {
          if (j >= past_key(last, h, p) || j + ACROSS <= first_key(t, h, p)) continue;
          sync_threads();  // nobody reads the tiles before any more
          fill<THREADS>(query_tile, row_of(q, p.q, batch, head, t), p.q.row, p.queries - t, p.dim);
          fill<THREADS>(cotangent_tile, row_of(dout, p.dout, batch, head, t), p.dout.row, p.queries - t,
                        p.value_dim);
          fill<THREADS>(key_tile, row_of(k, p.k, batch, h.kv_head, j), p.k.row, h.length - j, p.dim);
          fill<THREADS>(value_tile, row_of(v, p.v, batch, h.kv_head, j), p.v.row, h.length - j, p.value_dim);
          commit_copies();
          wait_copies<0>();
          sync_threads();
          float s[PANELS][ACROSS / 8][4] = {}, d[PANELS][ACROSS / 8][4] = {};
          add_rows_times_rows<Stored, QueryTile, KeyTile>(s, of_queries, key_tile.right());
          add_rows_times_rows<Stored, CotangentTile, ValueTile>(d, of_cotangents, value_tile.right());
          UNROLL for (int panel = 0; panel < PANELS; panel++)
            UNROLL for (int half = 0; half < 2; half++) {
              const int i = t + lane_row(panel, half);
              if (i >= p.queries) continue;
              const int64 number = (int64(batch) * p.heads + head) * p.queries + i;
              const float high = shift[number], less = delta[number];
              const int first = first_key(i, h, p), past = past_key(i, h, p);
              const RowOptions options = options_of_row(h, i, o, p);
              UNROLL for (int part = 0; part < ACROSS / 8; part++) {
                const int even = j + 8 * part + threadIdx.x % 4 * 2;
                float added[2] = {0, 0};
                bias_of_pair(added, options, even, p);
                UNROLL for (int n = 0; n < 2; n++) {
                  const int key = even + n, e = 2 * half + n;
                  if (key < first || key >= past) continue;
                  const float x = PLAIN ? s[panel][part][e] : score(s[panel][part][e], added[n], options, key, p);
                  const float weight = x == -infinity<float>() ? 0.0f : exp2_fast(x * factor - high);
                  sums[panel][part][e] += gradient_of_score(weight, d[panel][part][e], less, kept_of(h, i, key, o, p));
                }
              }
            }
        }
      }
    }

  // Over queries, where the bias is the same for all: the rows of a lane, of the warp, and of the warps in turn.
  if (queries == 1) {
    Shared<float> columns = shared<float>(0);
    for (int turn = 0; turn < WARPS; turn++) {
      sync_threads();
      if (int(threadIdx.x) / 32 != turn) continue;
      UNROLL for (int part = 0; part < ACROSS / 8; part++)
        UNROLL for (int n = 0; n < 2; n++) {
          float sum = 0;
          UNROLL for (int panel = 0; panel < PANELS; panel++) sum += sums[panel][part][n] + sums[panel][part][2 + n];
          UNROLL for (int lanes = 4; lanes < 32; lanes *= 2) sum += shuffle_xor(sum, lanes);
          const int column = 8 * part + threadIdx.x % 4 * 2 + n;
          if (threadIdx.x % 32 < 4) columns[column] = turn ? columns[column] + sum : sum;
        }
    }
    sync_threads();
    UNROLL for (int part = 0; part < ACROSS / 8; part++)
      UNROLL for (int n = 0; n < 2; n++) {
        const int column = 8 * part + threadIdx.x % 4 * 2 + n;
        const bool is_first = threadIdx.x < 4;
        float sum = 0;
        if (is_first) sum = columns[column];
        UNROLL for (int panel = 0; panel < PANELS; panel++) sums[panel][part][n] = sums[panel][part][2 + n] = 0;
        sums[0][part][n] = sum;
      }
  }
  const int64 first_number = (int64(of_batch) * heads + of_head) * queries;
  UNROLL for (int panel = 0; panel < PANELS; panel++)
    UNROLL for (int half = 0; half < 2; half++) {
      const int64 row = queries == 1 ? 0 : first_t + lane_row(panel, half);
      const bool is_there = queries == 1 ? threadIdx.x < 4 && panel == 0 && half == 0 : row < queries;
      float all = 0;
      UNROLL for (int part = 0; part < ACROSS / 8; part++)
        UNROLL for (int n = 0; n < 2; n++) {
          const int64 key = first_j + 8 * part + threadIdx.x % 4 * 2 + n;
          const float sum = sums[panel][part][2 * half + n];
          all += sum;
          if (keys == 1 || !is_there || key >= keys) continue;
          Stored stored;
          narrow(sum, stored);
          dbias[(first_number + row) * keys + key] = stored;
        }
      if (keys == 1) {
        all += shuffle_xor(all, 1);
        all += shuffle_xor(all, 2);
        Stored stored;
        narrow(all, stored);
        if (is_there && threadIdx.x % 4 == 0) dbias[first_number + row] = stored;
      }
    }
}
EXPORT(attention_bias)
