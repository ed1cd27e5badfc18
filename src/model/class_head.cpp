// See hetlora/model/class_head.hpp.
#include "hetlora/model/class_head.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"

namespace hetlora {
namespace {

constexpr double initial_deviation = 0.02;  // transformers' initializer_range

/// Views of one client's row; undefined where the head has no such part.
struct HeadViews {
    at::Tensor dense_DD, dense_bias_D, output_KD, output_bias_K;
};

HeadViews views_of(const ClassHeadShape& shape, const at::Tensor& row_P) {
    HeadViews views;
    std::int64_t at = 0;
    const auto take = [&](std::int64_t rows, std::int64_t columns) {
        at::Tensor part = row_P.narrow(0, at, rows * std::max<std::int64_t>(1, columns));
        at += part.numel();
        return columns == 0 ? part : part.view({rows, columns});
    };
    if (shape.dense) {
        views.dense_DD = take(shape.hidden, shape.hidden);
        views.dense_bias_D = take(shape.hidden, 0);
    }
    views.output_KD = take(shape.labels, shape.hidden);
    if (shape.bias) views.output_bias_K = take(shape.labels, 0);
    return views;
}

at::Tensor linear(const at::Tensor& x_RD, const at::Tensor& weight, const at::Tensor& bias) {
    at::Tensor y = at::mm(x_RD, weight.t());
    if (bias.defined()) y.add_(bias);
    return y;
}

/// What the output reads.
at::Tensor inner_rows(const ClassHeadShape& shape, const HeadViews& views, const at::Tensor& pooled_RD) {
    if (!shape.dense) return pooled_RD;
    at::Tensor inner = linear(pooled_RD, views.dense_DD, views.dense_bias_D);
    if (shape.activation == HeadActivation::tanh) inner.tanh_();
    if (shape.activation == HeadActivation::relu) inner.relu_();
    return inner;
}

}  // namespace

std::vector<ClassHeadPart> ClassHeadShape::parts() const {
    std::vector<ClassHeadPart> all;
    std::int64_t first = 0;
    const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t columns) {
        all.push_back({.name = name, .first = first, .rows = rows, .columns = columns});
        first += all.back().values();
    };
    if (dense) {
        add(dense_name + ".weight", hidden, hidden);
        add(dense_name + ".bias", hidden, 0);
    }
    add(output_name + ".weight", labels, hidden);
    if (bias) add(output_name + ".bias", labels, 0);
    return all;
}

std::int64_t ClassHeadShape::parameters() const {
    const std::vector<ClassHeadPart> all = parts();
    return all.back().first + all.back().values();
}

std::vector<std::string> ClassHeadShape::modules() const {
    std::vector<std::string> names;
    for (const std::string& name : {dense_name, output_name}) {
        const std::string module = name.substr(0, name.find('.'));
        if (!module.empty() && std::ranges::find(names, module) == names.end()) names.push_back(module);
    }
    return names;
}

ClassHeadShape class_head_shape(const ModelConfig& config, std::int64_t labels) {
    if (labels < 2) throw usage_error("a classification head needs at least 2 labels, and there are {}", labels);
    ClassHeadShape shape;
    shape.labels = labels;
    shape.hidden = config.hidden_size;
    const ClassHeadRule& rule = config.family->class_head;
    shape.dense = !rule.dense.empty();
    shape.activation = rule.activation;
    shape.bias = rule.bias;
    shape.dense_name = rule.dense;
    shape.output_name = rule.output;
    return shape;
}

std::vector<double> initial_class_head(const ClassHeadShape& shape, std::uint64_t seed, bool round_to_fp32) {
    std::vector<double> values(static_cast<std::size_t>(shape.parameters()), 0.0);
    for (const ClassHeadPart& part : shape.parts()) {
        if (part.columns == 0) continue;
        for (std::int64_t i = part.first; i < part.first + part.values(); ++i) {
            const double value = initial_deviation * standard_normal(hash_seed(seed, Purpose::class_head, i));
            values[static_cast<std::size_t>(i)] = round_to_fp32 ? static_cast<float>(value) : value;
        }
    }
    return values;
}

ClassHeadGroup::ClassHeadGroup(const ClassHeadShape& shape, std::int64_t clients, bool with_gradient,
                               const at::TensorOptions& options)
    : theta_CP(at::zeros({clients, shape.parameters()}, options)), shape_(shape) {
    if (with_gradient) gradient_CP = at::zeros_like(theta_CP);
}

void ClassHeadGroup::set(std::int64_t client, std::span<const double> values) {
    if (std::ssize(values) != shape_.parameters()) {
        throw bug_error("a classification head of {} values was given {}", shape_.parameters(), values.size());
    }
    const at::Tensor source = at::from_blob(const_cast<double*>(values.data()), {std::ssize(values)}, at::kDouble);
    theta_CP.select(0, client).copy_(source);
}

namespace {

std::vector<double> host_values(const at::Tensor& row_P) {
    const at::Tensor values = row_P.to(at::kCPU, at::kDouble).contiguous();
    const double* first = values.const_data_ptr<double>();
    return {first, first + values.numel()};
}

}  // namespace

std::vector<double> ClassHeadGroup::get(std::int64_t client) const { return host_values(theta_CP.select(0, client)); }

std::vector<double> ClassHeadGroup::get_gradient(std::int64_t client) const {
    return host_values(gradient_CP.select(0, client));
}

at::Tensor class_head_logits(const ClassHeadRun& run, const at::Tensor& pooled_RD) {
    const ClassHeadShape& shape = run.group->shape();
    const HeadViews views = views_of(shape, run.group->theta_CP.select(0, run.client));
    return linear(inner_rows(shape, views, pooled_RD), views.output_KD, views.output_bias_K);
}

at::Tensor class_head_backward(const ClassHeadRun& run, const at::Tensor& pooled_RD, const at::Tensor& d_logits_RK) {
    const ClassHeadShape& shape = run.group->shape();
    const HeadViews views = views_of(shape, run.group->theta_CP.select(0, run.client));
    HeadViews gradient = views_of(shape, run.group->gradient_CP.select(0, run.client));
    const at::Tensor inner_RD = inner_rows(shape, views, pooled_RD);
    gradient.output_KD.copy_(at::mm(d_logits_RK.t(), inner_RD));
    if (shape.bias) gradient.output_bias_K.copy_(d_logits_RK.sum(0));
    at::Tensor d_inner_RD = at::mm(d_logits_RK, views.output_KD);
    if (!shape.dense) return d_inner_RD;
    if (shape.activation == HeadActivation::tanh) d_inner_RD.mul_(1.0 - inner_RD.square());
    if (shape.activation == HeadActivation::relu) d_inner_RD.mul_(inner_RD > 0);
    gradient.dense_DD.copy_(at::mm(d_inner_RD.t(), pooled_RD));
    gradient.dense_bias_D.copy_(d_inner_RD.sum(0));
    return at::mm(d_inner_RD, views.dense_DD);
}

}  // namespace hetlora
