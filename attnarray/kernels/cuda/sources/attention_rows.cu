// Kernels over rows for attention on tensor cores: sums of out times cotangent, merged parts of a row, gradients of sinks.
// Reference: attention/engine.py, attention/dot_product/partial.py, attention/normalizers.py. Parallel over rows, a warp for
// each; for sinks over heads, a block for each. Shared: one number of each warp.
#include "primitives.cuh"

// delta = sum_d dout out - dlse, for rows (B, H, T) of `width` numbers; and the shift of exponents that gives weights:
// the lse times `unit`, or infinity for a fully masked row.
KERNEL(256) attention_delta(Global<const Stored> dout, int64 dout_batch, int64 dout_head, int64 dout_row,
                            Global<const Stored> out, Global<const float> lse, Global<const float> dlse,
                            Global<float> delta, Global<float> shift, int64 rows, int64 heads, int64 queries,
                            int64 width, float unit) {
  const int lane = threadIdx.x % 32;
  const int64 row = int64(blockIdx.x) * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  const int64 t = row % queries, head = row / queries % heads, batch = row / queries / heads;
  Global<const Stored> cotangent = dout + (batch * dout_batch + head * dout_head + t * dout_row);
  float sum = 0;
  for (int64 d = lane; d < width; d += 32) {
    Stored x = cotangent[d], y = out[row * width + d];
    if (wide(y) != 0) sum += wide(x) * wide(y);  // a fully masked row is 0, whatever its cotangent
  }
  sum = sum_over_lanes(sum);
  if (lane) return;
  delta[row] = dlse ? sum - dlse[row] : sum;
  const float one = lse[row];
  shift[row] = one == -infinity<float>() ? infinity<float>() : one * unit;
}
EXPORT(attention_delta)

// Merge the parts of each row by their lse, and the sink of the head.
KERNEL(256) attention_merge(Global<const float> part_out, Global<const float> part_lse, Global<const Stored> sinks,
                            Global<Stored> out, Global<float> lse, int64 parts, int64 rows, int64 heads, int64 queries,
                            int64 width) {
  const int lane = threadIdx.x % 32;
  const int64 row = int64(blockIdx.x) * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  float row_max = -infinity<float>(), sink = -infinity<float>();
  if (sinks) {
    Stored z = sinks[row / queries % heads];
    sink = wide(z), row_max = sink;
  }
  for (int64 n = 0; n < parts; n++) {
    const float one = part_lse[n * rows + row];
    row_max = one > row_max || one != one ? one : row_max;
  }
  const float shift = row_max == -infinity<float>() ? 0.0f : row_max;
  float row_sum = exp(sink - shift);
  for (int64 n = 0; n < parts; n++) row_sum += exp(part_lse[n * rows + row] - shift);
  if (lane == 0) lse[row] = row_sum == 0 ? -infinity<float>() : shift + log(row_sum);
  for (int64 d = lane; d < width; d += 32) {
    float sum = 0;
    for (int64 n = 0; n < parts; n++) {
      const float weight = exp(part_lse[n * rows + row] - shift);
      if (weight != 0) sum += weight * part_out[(n * rows + row) * width + d];
    }
    Stored stored;
    narrow(row_sum == 0 ? 0.0f : sum / row_sum, stored);
    out[row * width + d] = stored;
  }
}
EXPORT(attention_merge)

// dz = - sum over batches and queries of e^(z - lse) delta.
KERNEL(256) attention_sinks(Global<const float> lse, Global<const float> delta, Global<const Stored> sinks,
                            Global<Stored> dsinks, int64 batches, int64 heads, int64 queries) {
  const int64 head = blockIdx.x;
  Stored stored = sinks[head];
  const float z = wide(stored);
  float sum = 0;
  for (int64 n = threadIdx.x; n < batches * queries; n += 256) {
    const int64 row = (n / queries * heads + head) * queries + n % queries;
    const float one = lse[row], weight = exp(z - (one == -infinity<float>() ? 0.0f : one));
    if (weight != 0) sum -= weight * delta[row];
  }
  Shared<float> warp_values = shared<float>(0);
  sum = sum_over_lanes(sum);
  if (threadIdx.x % 32 == 0) warp_values[threadIdx.x / 32] = sum;
  sync_threads();
  if (threadIdx.x == 0) {
    float all = 0;
    for (int n = 0; n < 8; n++) all += warp_values[n];
    narrow(all, stored);
    dsinks[head] = stored;
  }
}
EXPORT(attention_sinks)
