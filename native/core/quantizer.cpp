// The C functions that quantize weights: check the arguments, split the rows among threads, call the kernels.
#include <atomic>
#include <initializer_list>

#include "core/internal.h"
#include "core/parallel.h"
#include "core/product.h"
#include "kernels/quantizer_kernels.h"

namespace zp {
namespace {

zp_status check(const zp_groups* groups, int32_t threads) {
  if (groups == nullptr || groups->weight == nullptr) return fail(ZP_INVALID, "a pointer is null");
  if (groups->rows < 0 || groups->columns < 1 || groups->group_size < 1 || groups->qmin < -128 ||
      groups->qmin >= groups->qmax || groups->qmax > 127 || groups->group_size > kMostValues ||
      groups->rows > kMostValues || !fits(round_up(groups->rows, kPanel), groups->columns))
    return fail(ZP_INVALID, "a weight [%lld, %lld] in groups of %lld with codes %d to %d cannot be",
                static_cast<long long>(groups->rows), static_cast<long long>(groups->columns),
                static_cast<long long>(groups->group_size), groups->qmin, groups->qmax);
  if (threads < 1 || threads > Pool::kMaxThreads)
    return fail(ZP_INVALID, "threads must be 1 to %d, not %d", Pool::kMaxThreads, threads);
  return active_quantizer_kernels() == nullptr ? ZP_UNSUPPORTED : ZP_OK;  // the error is recorded
}

// Return an error if a matrix [columns, columns] has too many values.
zp_status check_square(const zp_groups& groups) {
  if (fits(groups.columns, groups.columns)) return ZP_OK;
  return fail(ZP_INVALID, "a matrix of %lld x %lld values is too large", static_cast<long long>(groups.columns),
              static_cast<long long>(groups.columns));
}

zp_status check_pointers(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers)
    if (pointer == nullptr) return fail(ZP_INVALID, "a pointer is null");
  return ZP_OK;
}

Groups describe(const zp_groups& groups) {
  return {groups.weight,
          groups.rows,
          groups.columns,
          groups.group_size,
          ceil_div(groups.columns, groups.group_size),
          static_cast<float>(groups.qmin),
          static_cast<float>(groups.qmax)};
}

// Call work(row, scratch) for every `step`-th row on several threads. Each thread has its own `floats` floats of
// scratch.
template <class F>
zp_status each_piece(const Groups& groups, int64_t step, int64_t floats, int32_t threads, F&& work) {
  std::atomic<bool> out_of_memory{false};
  const int64_t pieces = ceil_div(groups.rows, step);
  parallel(threads, pieces, 1, [&](int64_t begin, int64_t end) {
    auto* scratch = reinterpret_cast<float*>(thread_scratch(static_cast<size_t>(floats) * sizeof(float)));
    if (scratch == nullptr) return out_of_memory.store(true);
    for (int64_t piece = begin; piece < end; ++piece) work(piece * step, scratch);
  });
  return out_of_memory.load() ? fail(ZP_NO_MEMORY, "no memory for a thread's rows") : ZP_OK;
}

zp_status search(const zp_groups* groups, const float* importance, const float* parts, int64_t count, float* low,
                 float* high, float* scale, float* zero, int32_t threads) {
  if (const zp_status status = check(groups, threads); status != ZP_OK) return status;
  if (const zp_status status = check_pointers({importance, parts, low, high, scale}); status != ZP_OK)
    return status;
  if (count < 1 || count > kMostValues)
    return fail(ZP_INVALID, "a search needs at least one fraction of the range to try, and at most 2^40");
  const GridSearch search{describe(*groups), importance, parts, count, low, high, scale, zero};
  const auto kernel = active_quantizer_kernels()->search;
  return each_piece(search.groups, kLanes, grid_scratch(search.groups), threads,
                    [&](int64_t row, float* scratch) { kernel(search, row, scratch); });
}

zp_status errors(const zp_groups* groups, const float* importance, int64_t grids, const float* scale,
                 const float* zero, float* error, int32_t threads) {
  if (const zp_status status = check(groups, threads); status != ZP_OK) return status;
  if (const zp_status status = check_pointers({importance, scale, error}); status != ZP_OK) return status;
  if (!fits(grids, groups->rows * ceil_div(groups->columns, groups->group_size)))
    return fail(ZP_INVALID, "%lld grids cannot be", static_cast<long long>(grids));
  const GridErrors errors{describe(*groups), importance, grids, scale, zero, error};
  const auto kernel = active_quantizer_kernels()->errors;
  return each_piece(errors.groups, kLanes, grid_scratch(errors.groups), threads,
                    [&](int64_t row, float* scratch) { kernel(errors, row, scratch); });
}

zp_status round_columns(const zp_groups* groups, const float* scale, const float* zero, const float* ratio,
                        const int64_t* order, int8_t* codes, int32_t threads) {
  if (const zp_status status = check(groups, threads); status != ZP_OK) return status;
  if (const zp_status status = check_pointers({scale, ratio, order, codes}); status != ZP_OK) return status;
  if (const zp_status status = check_square(*groups); status != ZP_OK) return status;
  for (int64_t j = 0; j < groups->columns; ++j)
    if (order[j] < 0 || order[j] >= groups->columns)
      return fail(ZP_INVALID, "column %lld is not one of %lld", static_cast<long long>(order[j]),
                  static_cast<long long>(groups->columns));
  const ColumnRounding rounding{describe(*groups), scale, zero, ratio, order, codes};
  const auto kernel = active_quantizer_kernels()->round_columns;
  return each_piece(rounding.groups, kPanel, kPanel * groups->columns, threads,
                    [&](int64_t row, float* scratch) { kernel(rounding, row, scratch); });
}

zp_status descend_columns(const zp_groups* groups, const float* scale, const float* zero, const float* hessian,
                          int64_t sweeps, int8_t* codes, int32_t threads) {
  if (const zp_status status = check(groups, threads); status != ZP_OK) return status;
  if (const zp_status status = check_pointers({scale, hessian, codes}); status != ZP_OK) return status;
  if (const zp_status status = check_square(*groups); status != ZP_OK) return status;
  if (sweeps < 0) return fail(ZP_INVALID, "%lld sweeps cannot be", static_cast<long long>(sweeps));
  const ColumnDescent descent{describe(*groups), scale, zero, hessian, sweeps, codes};
  const auto kernel = active_quantizer_kernels()->descend_columns;
  return each_piece(descent.groups, kPanel, kPanel * groups->columns, threads,
                    [&](int64_t row, float* scratch) { kernel(descent, row, scratch); });
}

}  // namespace
}  // namespace zp

zp_status zp_grid_search(const zp_groups* groups, const float* importance, const float* parts, int64_t count,
                         float* low, float* high, float* scale, float* zero, int32_t threads) {
  return zp::guarded([&] {
    const zp::Running running;
    return zp::search(groups, importance, parts, count, low, high, scale, zero, threads);
  });
}

zp_status zp_grid_errors(const zp_groups* groups, const float* importance, int64_t grids, const float* scale,
                         const float* zero, float* error, int32_t threads) {
  return zp::guarded([&] {
    const zp::Running running;
    return zp::errors(groups, importance, grids, scale, zero, error, threads);
  });
}

zp_status zp_round_columns(const zp_groups* groups, const float* scale, const float* zero, const float* ratio,
                           const int64_t* order, int8_t* codes, int32_t threads) {
  return zp::guarded([&] {
    const zp::Running running;
    return zp::round_columns(groups, scale, zero, ratio, order, codes, threads);
  });
}

zp_status zp_descend_columns(const zp_groups* groups, const float* scale, const float* zero,
                             const float* hessian, int64_t sweeps, int8_t* codes, int32_t threads) {
  return zp::guarded([&] {
    const zp::Running running;
    return zp::descend_columns(groups, scale, zero, hessian, sweeps, codes, threads);
  });
}
