// Changes of the frozen base: low-rank products added to adapted matrices (FLoRA, FedEx-LoRA and their kin).
//
// The stacked matrices of every layer are kept in the residual stream's dtype (float32 beside bfloat16). Where the GEMM
// path computes on the dense weight itself in that dtype, the copy is the weight.
//
// Where the base itself is trained, all weights change (set_weights), in place.
#include <algorithm>

#include "hetlora/base/error.hpp"
#include "hetlora/model/engine.hpp"
#include "hetlora/model/flat_weights.hpp"

namespace hetlora {

void Engine::keep_changeable() {
    const bool in_place = options_.gemm == GemmPath::mkl && activation_dtype_ == residual_dtype_;
    const auto& config = weights_.config;
    base_rows_.resize(layout_.matrices.size());
    for (std::size_t l = 0; l < weights_.layer.size(); ++l) {
        LayerWeights& layer = weights_.layer[l];
        const std::size_t first = changeable_.size();
        // By LayerMatrix: where their rows begin in the stacked matrix.
        const std::int64_t query = config.query_width();
        const BaseRows rows[] = {
            {first, 0},     {first, query}, {first, query + config.kv_width()},
            {first + 1, 0}, {first + 2, 0}, {first + 2, config.up_width() - config.intermediate_size},
            {first + 3, 0}, {first, 0}};
        for (at::Tensor* dense : {&layer.qkv_XD, &layer.o_DX, &layer.gate_up_ID, &layer.down_DI}) {
            changeable_.emplace_back().dense = dense;
        }
        for (std::size_t target = 0; target < std::size(rows); ++target) {
            const int matrix = placement_[l][target];
            if (matrix < 0) continue;
            base_rows_[static_cast<std::size_t>(matrix)] = rows[target];
            Changeable& changeable = changeable_[rows[target].changeable];
            if (changeable.master_OI.defined()) continue;
            changeable.master_OI = in_place ? *changeable.dense : changeable.dense->to(residual_dtype_, false, true);
        }
    }
}

at::Tensor Engine::base_rows(std::size_t matrix) const {
    if (!options_.base_changes) throw bug_error("the base of matrix {} cannot change in this engine", matrix);
    const BaseRows& rows = base_rows_.at(matrix);
    return changeable_[rows.changeable].master_OI.narrow(0, rows.first, layout_.matrices[matrix].d_out);
}

void Engine::refreeze(const Changeable& changeable) {
    if (changeable.dense->defined() && changeable.master_OI.is_alias_of(*changeable.dense)) return;
    const at::Tensor weight_OI = changeable.master_OI.to(activation_dtype_);
    if (options_.gemm == GemmPath::mkl) {
        changeable.dense->copy_(weight_OI);
    } else {
        *changeable.frozen = FrozenLinear(weight_OI, options_.gemm);
    }
}

void Engine::add_to_base(std::size_t matrix, std::span<const double> a_RI, std::span<const double> bt_RO) {
    const at::NoGradGuard no_grad;
    const AdaptedMatrix& shape = layout_.matrices.at(matrix);
    const std::int64_t slots = std::ssize(a_RI) / shape.d_in;
    if (std::ssize(a_RI) != slots * shape.d_in || std::ssize(bt_RO) != slots * shape.d_out) {
        throw bug_error("change of {}: {} and {} values are no slots of {} and {}", shape.name, a_RI.size(),
                        bt_RO.size(), shape.d_in, shape.d_out);
    }
    at::Tensor rows = base_rows(matrix);
    const auto view = [](std::span<const double> values, std::int64_t n, std::int64_t width) {
        return at::from_blob(const_cast<double*>(values.data()), {n, width}, at::kDouble);
    };
    const at::Tensor change = at::mm(view(bt_RO, slots, shape.d_out).t(), view(a_RI, slots, shape.d_in));
    rows.copy_(rows.to(at::kCPU, at::kDouble).add_(change));
    refreeze(changeable_[base_rows_[matrix].changeable]);
}

std::vector<double> Engine::base_matrix(std::size_t matrix) const {
    const at::Tensor values = base_rows(matrix).to(at::kCPU, at::kDouble).contiguous();
    const double* first = values.const_data_ptr<double>();
    return {first, first + values.numel()};
}

void Engine::set_base_matrix(std::size_t matrix, std::span<const double> weight_OI) {
    const at::NoGradGuard no_grad;
    at::Tensor rows = base_rows(matrix);
    if (std::ssize(weight_OI) != rows.numel()) {
        throw bug_error("base of {}: {} values instead of {}", layout_.matrices[matrix].name, weight_OI.size(),
                        rows.numel());
    }
    rows.copy_(at::from_blob(const_cast<double*>(weight_OI.data()), rows.sizes(), at::kDouble));
    refreeze(changeable_[base_rows_[matrix].changeable]);
}

void Engine::check_all_may_change() const {
    if (options_.gemm == GemmPath::mkl && runner_ == nullptr) return;
    throw bug_error("this engine computes on copies of its weights (gemm {}): they cannot change",
                    name_of(options_.gemm));
}

void Engine::set_weights(std::size_t first, std::span<const double> values) {
    check_all_may_change();
    FlatWeights(weights_).write(first, values);
}

void Engine::set_weight(std::string_view name, std::span<const double> values) {
    const at::NoGradGuard no_grad;
    check_all_may_change();
    const auto named = named_weights(weights_);
    const auto found = std::ranges::find(named, name, &NamedWeight::name);
    if (found == named.end() || found->tensor.numel() != std::ssize(values)) {
        throw bug_error("set_weight: no {} with {} values in this model", name, values.size());
    }
    at::Tensor tensor = found->tensor;
    tensor.copy_(at::from_blob(const_cast<double*>(values.data()), tensor.sizes(), at::kDouble));
}

}  // namespace hetlora
