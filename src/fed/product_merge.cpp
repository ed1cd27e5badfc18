#include "hetlora/fed/product_merge.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "each_matrix.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"
#include "hetlora/tensor/torch.hpp"

namespace hetlora {

namespace {

using Rows = std::span<const double>;

/// Row `slot` of A or Bt.
Rows row_of(Rows rows, std::int64_t slot, std::int64_t width) {
    return rows.subspan(static_cast<std::size_t>(slot * width), static_cast<std::size_t>(width));
}

Rows rows_a(const AdapterLayout& layout, Rows factors, std::size_t m, std::int64_t lora_rank) {
    return factors.subspan(static_cast<std::size_t>(layout.offset_a(m, lora_rank)),
                           static_cast<std::size_t>(lora_rank * layout.matrices[m].d_in));
}

Rows rows_bt(const AdapterLayout& layout, Rows factors, std::size_t m, std::int64_t lora_rank) {
    return factors.subspan(static_cast<std::size_t>(layout.offset_b(m, lora_rank)),
                           static_cast<std::size_t>(lora_rank * layout.matrices[m].d_out));
}

bool all_finite(Rows values) {
    return std::ranges::all_of(values, [](double value) { return std::isfinite(value); });
}

void check_upload(const AdapterLayout& layout, const UploadedFactors& upload) {
    if (upload.lora_rank < 1 || std::ssize(upload.factors) != layout.parameters(upload.lora_rank)) {
        throw bug_error("upload of client {}: {} values do not fit lora_rank {}", upload.client, upload.factors.size(),
                        upload.lora_rank);
    }
    if (!(upload.scale > 0.0) || !std::isfinite(upload.scale)) {
        throw bug_error("upload of client {}: LoRA scale {} is not a positive number", upload.client, upload.scale);
    }
}

void check(const ProductMergeInput& input) {
    if (input.uploads.empty()) throw bug_error("a product merge needs at least one client");
    if (input.weights.of_client.size() != input.uploads.size()) {
        throw bug_error("{} clients but weights of {}", input.uploads.size(), input.weights.of_client.size());
    }
    const std::size_t n_matrices = input.layout.matrices.size();
    for (std::size_t k = 0; k < input.uploads.size(); ++k) {
        const UploadedFactors& upload = input.uploads[k];
        check_upload(input.layout, upload);
        const auto& weights = input.weights.of_client[k];
        if (weights.size() != n_matrices * static_cast<std::size_t>(upload.lora_rank) || !all_finite(weights)) {
            throw bug_error("upload of client {}: {} weights, or one that is not finite, at lora_rank {}",
                            upload.client, weights.size(), upload.lora_rank);
        }
    }
}

void check_finite(const AdaptedMatrix& shape, const UploadedFactors& upload, Rows a, Rows bt) {
    if (all_finite(a) && all_finite(bt)) return;
    throw training_error("client {} sent values that are not finite in {} - lower train.learning_rate, or drop it",
                         upload.client, shape.name);
}

/// Calls use(k, j, weight, a row, bt row) for every slot of every client of matrix m, in cohort order.
template <typename Use>
void for_each_slot(const ProductMergeInput& input, std::size_t m, const Use& use) {
    const AdaptedMatrix& shape = input.layout.matrices[m];
    for (std::size_t k = 0; k < input.uploads.size(); ++k) {
        const UploadedFactors& upload = input.uploads[k];
        const Rows a = rows_a(input.layout, upload.factors, m, upload.lora_rank);
        const Rows bt = rows_bt(input.layout, upload.factors, m, upload.lora_rank);
        check_finite(shape, upload, a, bt);
        for (std::int64_t j = 0; j < upload.lora_rank; ++j) {
            const double weight =
                input.weights
                    .of_client[k][m * static_cast<std::size_t>(upload.lora_rank) + static_cast<std::size_t>(j)];
            use(upload, j, weight, row_of(a, j, shape.d_in), row_of(bt, j, shape.d_out));
        }
    }
}

LowRankMatrix empty_stack(const ProductMergeInput& input, std::size_t m) {
    const AdaptedMatrix& shape = input.layout.matrices[m];
    LowRankMatrix stack{
        .name = shape.name, .d_out = shape.d_out, .d_in = shape.d_in, .lora_rank = 0, .a = {}, .bt = {}};
    for (const auto& upload : input.uploads) stack.lora_rank += upload.lora_rank;
    stack.a.reserve(static_cast<std::size_t>(stack.lora_rank * shape.d_in));
    stack.bt.reserve(static_cast<std::size_t>(stack.lora_rank * shape.d_out));
    return stack;
}

LowRankMatrix stack_matrix(const ProductMergeInput& input, std::size_t m) {
    LowRankMatrix stack = empty_stack(input, m);
    for_each_slot(input, m, [&](const UploadedFactors& upload, std::int64_t, double weight, Rows a, Rows bt) {
        const double factor = weight * upload.scale;
        for (const double value : a) stack.a.push_back(factor * value);
        stack.bt.insert(stack.bt.end(), bt.begin(), bt.end());
    });
    return stack;
}

double dot(Rows x, Rows y) {
    double sum = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
    return sum;
}

/// Writes a hashed unit row that is orthogonal to the rows before it; false if none is left.
/// @param rows at least `slot` + 1 rows of this width; those before `slot` are orthonormal
bool draw_orthogonal_row(std::vector<double>& rows, std::size_t slot, std::size_t width, std::uint64_t bits) {
    if (slot >= width) return false;
    const auto row = [&](std::size_t i) { return std::span(rows).subspan(i * width, width); };
    const auto drawn = row(slot);
    for (std::uint64_t attempt = 0; attempt < 8; ++attempt) {
        for (std::size_t i = 0; i < width; ++i) drawn[i] = standard_normal(mix64(mix64(bits + attempt) + i));
        const double before = std::sqrt(dot(drawn, drawn));
        for (int pass = 0; pass < 2; ++pass) {  // once is not orthogonal to the last bits
            for (std::size_t other = 0; other < slot; ++other) {
                const double along = dot(drawn, row(other));
                for (std::size_t i = 0; i < width; ++i) drawn[i] -= along * row(other)[i];
            }
        }
        const double norm = std::sqrt(dot(drawn, drawn));
        if (norm < 1e-6 * before) continue;
        for (double& value : drawn) value /= norm;
        return true;
    }
    std::ranges::fill(drawn, 0.0);
    return false;
}

/// Rows of unit vectors for all slots: the singular vectors, then drawn ones as far as there are any.
std::vector<double> complete_rows(const std::vector<double>& vectors, std::int64_t n_slots, std::int64_t width,
                                  std::uint64_t bits) {
    std::vector<double> rows = vectors;
    rows.resize(static_cast<std::size_t>(n_slots * width));
    for (std::size_t slot = vectors.size() / static_cast<std::size_t>(width); slot < static_cast<std::size_t>(n_slots);
         ++slot) {
        if (!draw_orthogonal_row(rows, slot, static_cast<std::size_t>(width), mix64(bits + slot))) break;
    }
    return rows;
}

/// Multiplies row i by factors[i]; rows beyond the factors become 0.
void scale_rows(std::vector<double>& rows, std::size_t width, const std::vector<double>& factors) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const std::size_t slot = i / width;
        rows[i] = slot < factors.size() ? rows[i] * factors[slot] : 0.0;
    }
}

void round_rows(std::vector<double>& rows) {
    for (double& value : rows) value = static_cast<double>(static_cast<float>(value));
}

}  // namespace

SlotWeights slot_weights(const AdapterLayout& layout, std::span<const UploadedFactors> uploads, SlotWeighting weighting,
                         std::span<const std::int64_t> levels) {
    const std::size_t n_matrices = layout.matrices.size();
    std::int64_t rank_max = 0;
    for (const auto& upload : uploads) {
        rank_max = std::max(rank_max, upload.lora_rank);
        if (upload.weights.size() != n_matrices || !all_finite(upload.weights) ||
            std::ranges::any_of(upload.weights, [](double weight) { return weight < 0.0; })) {
            throw bug_error("client {} has {} weights for {} matrices, or one below 0 or not finite", upload.client,
                            upload.weights.size(), n_matrices);
        }
        if (weighting == SlotWeighting::levels && std::ranges::find(levels, upload.lora_rank) == levels.end()) {
            throw usage_error(
                "client {} has lora_rank {}, which is not one of the rank levels {} - the partitions of this merge "
                "need "
                "every client at a level: give the clients these ranks and switch pruning off, or choose another merge",
                upload.client, upload.lora_rank, fmt::join(levels, ", "));
        }
    }
    SlotWeights result;
    for (const auto& upload : uploads) {
        result.of_client.emplace_back(n_matrices * static_cast<std::size_t>(upload.lora_rank));
    }
    for (std::size_t m = 0; m < n_matrices; ++m) {
        for (std::int64_t j = 0; j < rank_max; ++j) {
            double total = 0.0;
            double n_counted = 0.0;
            for (const auto& upload : uploads) {
                if (weighting != SlotWeighting::all && upload.lora_rank <= j) continue;
                total += upload.weights[m];
                n_counted += 1.0;
            }
            for (std::size_t k = 0; k < uploads.size(); ++k) {
                const auto lora_rank = static_cast<std::size_t>(uploads[k].lora_rank);
                if (static_cast<std::size_t>(j) >= lora_rank) continue;
                result.of_client[k][m * lora_rank + static_cast<std::size_t>(j)] =
                    total > 0.0 ? uploads[k].weights[m] / total : 1.0 / n_counted;
            }
        }
    }
    return result;
}

MergedMatrix merge_matrix_by_product(const ProductMergeInput& input, const ProductMergeOptions& options,
                                     std::size_t matrix) {
    check(input);
    if (matrix >= input.layout.matrices.size() || options.rank_max < 1 || !(options.scale > 0.0)) {
        throw bug_error("product merge of matrix {} of {} at rank_max {} and scale {}", matrix,
                        input.layout.matrices.size(), options.rank_max, options.scale);
    }
    ProductSvd svd = product_svd(stack_matrix(input, matrix), options.rank_max, options.driver);
    const AdaptedMatrix& shape = input.layout.matrices[matrix];
    const std::uint64_t bits = hash_seed(options.seed, Purpose::refill, matrix);
    const bool draws_b = options.split == FactorSplit::right;
    const bool draws_a = options.split == FactorSplit::left ||
                         (options.split == FactorSplit::sqrt && options.null_slots == NullSlots::learnable);

    std::vector<double> sigma;  // of s B A
    std::vector<double> root;
    for (std::int64_t i = 0; i < svd.n_vectors; ++i) {
        sigma.push_back(svd.singular_values[static_cast<std::size_t>(i)] / options.scale);
        root.push_back(std::sqrt(sigma.back()));
    }
    MergedMatrix result;
    result.a = svd.right;
    result.bt = svd.left;
    if (options.split == FactorSplit::sqrt) {
        scale_rows(result.a, static_cast<std::size_t>(shape.d_in), root);
        scale_rows(result.bt, static_cast<std::size_t>(shape.d_out), root);
    } else if (options.split == FactorSplit::left) {
        scale_rows(result.bt, static_cast<std::size_t>(shape.d_out), sigma);
    } else {
        scale_rows(result.a, static_cast<std::size_t>(shape.d_in), sigma);
    }
    const auto fill = [&](std::vector<double>& rows, const std::vector<double>& vectors, std::int64_t width,
                          bool draw) {
        const std::vector<double> drawn =
            draw ? complete_rows(vectors, options.rank_max, width, bits) : std::vector<double>();
        const auto n_written = static_cast<std::ptrdiff_t>(rows.size());
        rows.resize(static_cast<std::size_t>(options.rank_max * width));
        if (draw) std::copy(drawn.begin() + n_written, drawn.end(), rows.begin() + n_written);
        if (options.round_to_fp32) round_rows(rows);
    };
    fill(result.a, svd.right, shape.d_in, draws_a);
    fill(result.bt, svd.left, shape.d_out, draws_b);
    result.energy_kept = energy_share(svd.singular_values, options.rank_max);
    result.n_filled = svd.n_vectors;
    result.singular_values = std::move(svd.singular_values);
    return result;
}

ProductMergeResult merge_by_product(const ProductMergeInput& input, const ProductMergeOptions& options) {
    check(input);
    const std::size_t n_matrices = input.layout.matrices.size();
    ProductMergeResult result;
    result.global.resize(static_cast<std::size_t>(input.layout.parameters(options.rank_max)));
    result.matrices.resize(n_matrices);
    for_each_matrix(n_matrices, [&](std::size_t m) {
        MergedMatrix merged = merge_matrix_by_product(input, options, m);
        std::ranges::copy(merged.a, result.global.begin() + input.layout.offset_a(m, options.rank_max));
        std::ranges::copy(merged.bt, result.global.begin() + input.layout.offset_b(m, options.rank_max));
        merged.a = {};
        merged.bt = {};
        result.matrices[m] = std::move(merged);
    });
    return result;
}

LowRankDelta stack_updates(const ProductMergeInput& input) {
    check(input);
    LowRankDelta delta;
    for (std::size_t m = 0; m < input.layout.matrices.size(); ++m) delta.matrices.push_back(stack_matrix(input, m));
    return delta;
}

LowRankDelta residual_delta(const ProductMergeInput& input, std::span<const double> global, std::int64_t rank_max,
                            double scale) {
    check(input);
    if (std::ssize(global) != input.layout.parameters(rank_max)) {
        throw bug_error("residual: {} values do not fit rank_max {}", global.size(), rank_max);
    }
    LowRankDelta delta;
    for (std::size_t m = 0; m < input.layout.matrices.size(); ++m) {
        const AdaptedMatrix& shape = input.layout.matrices[m];
        const Rows a_bar = rows_a(input.layout, global, m, rank_max);
        const Rows b_bar = rows_bt(input.layout, global, m, rank_max);
        std::vector<double> difference(b_bar.begin(), b_bar.end());  // B_bar minus the mean of the uploads
        double size = 0.0;
        LowRankMatrix stack = empty_stack(input, m);
        for_each_slot(input, m, [&](const UploadedFactors& upload, std::int64_t j, double weight, Rows a, Rows bt) {
            if (j >= rank_max) {
                throw bug_error("residual: client {} has lora_rank {} above rank_max {}", upload.client,
                                upload.lora_rank, rank_max);
            }
            const Rows mean = row_of(a_bar, j, shape.d_in);
            for (std::size_t i = 0; i < a.size(); ++i) {
                stack.a.push_back(weight * (upload.scale * a[i] - scale * mean[i]));
            }
            stack.bt.insert(stack.bt.end(), bt.begin(), bt.end());
            double* row = difference.data() + j * shape.d_out;
            for (std::size_t i = 0; i < bt.size(); ++i) row[i] -= weight * bt[i];
            size += weight * std::sqrt(dot(bt, bt));
        });
        if (std::sqrt(dot(difference, difference)) > 1e-5 * size) {
            throw bug_error("residual of {}: the global B is not the weighted mean of the clients' B", shape.name);
        }
        delta.matrices.push_back(std::move(stack));
    }
    return delta;
}

}  // namespace hetlora
