// What attention on tensor cores needs of each row: sums of out times cotangent, the parts of a row as one, gradients of sinks.
// Reference: attention/engine.py, attention/dot_product/partial.py, attention/normalizers.py. Parallel over rows, a warp for each; for
// sinks over heads, a block for each. Shared: one number of each warp.
#include "primitives.cuh"

// delta = sum_d dout out - dlse, for rows (B, H, T) of `width` numbers; and what is subtracted from exponents to make weights
// of them: the lse times `unit`, or infinity where a row sees no key.
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

// Rows of each part with their lse, as one, and the sink of their head.
KERNEL(256) attention_merge(Global<const float> part_out, Global<const float> part_lse, Global<const Stored> sinks,
                            Global<Stored> out, Global<float> lse, int64 parts, int64 rows, int64 heads, int64 queries,
                            int64 width) {
  const int lane = threadIdx.x % 32;
  const int64 row = int64(blockIdx.x) * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  float largest = -infinity<float>(), sink = -infinity<float>();
  if (sinks) {
    Stored z = sinks[row / queries % heads];
    sink = wide(z), largest = sink;
  }
  for (int64 n = 0; n < parts; n++) {
    const float one = part_lse[n * rows + row];
    largest = one > largest || one != one ? one : largest;
  }
  const float shift = largest == -infinity<float>() ? 0.0f : largest;
  float total = exp(sink - shift);
  for (int64 n = 0; n < parts; n++) total += exp(part_lse[n * rows + row] - shift);
  if (lane == 0) lse[row] = total == 0 ? -infinity<float>() : shift + log(total);
  for (int64 d = lane; d < width; d += 32) {
    float sum = 0;
    for (int64 n = 0; n < parts; n++) {
      const float weight = exp(part_lse[n * rows + row] - shift);
      if (weight != 0) sum += weight * part_out[(n * rows + row) * width + d];
    }
    Stored stored;
    narrow(total == 0 ? 0.0f : sum / total, stored);
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
  Shared<float> of_warps = shared<float>(0);
  sum = sum_over_lanes(sum);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sum;
  sync_threads();
  if (threadIdx.x == 0) {
    float all = 0;
    for (int n = 0; n < 8; n++) all += of_warps[n];
    narrow(all, stored);
    dsinks[head] = stored;
  }
}
EXPORT(attention_sinks)
