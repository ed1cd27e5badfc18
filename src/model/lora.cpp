#include "hetlora/model/lora.hpp"

#include <algorithm>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"
#include "hetlora/tensor/ops.hpp"
#include "hetlora/tensor/profile.hpp"

namespace hetlora {
namespace {

std::int64_t round_to_line(std::int64_t elements, const at::TensorOptions& options) {
    const std::int64_t line = 64 / static_cast<std::int64_t>(options.dtype().itemsize());
    return (elements + line - 1) / line * line;
}

/// [C, W, columns] view of a group's arena at an offset inside each client's row.
at::Tensor factor_view(const at::Tensor& arena_CP, std::int64_t offset, std::int64_t width, std::int64_t columns) {
    return arena_CP.narrow(1, offset, width * columns).unflatten(1, {width, columns});
}

/// [clients, rows, columns] view of a run's rows.
at::Tensor run_rows(const at::Tensor& x_ND, const RowRun& run) {
    return x_ND.narrow(0, run.row0, run.clients * run.rows_per_client).unflatten(0, {run.clients, run.rows_per_client});
}

/// x times the run's dropout mask (0 or 1/(1-p)). The mask of a client depends on its own seed, the matrix and the
/// element's position among the client's rows only.
void apply_dropout(const RowRun& run, std::size_t matrix, double probability, at::Tensor x_CND) {
    if (!x_CND.is_cpu()) throw usage_error("lora.dropout > 0 is only available on the CPU so far: set it to 0");
    const std::int64_t per_client = x_CND.size(1) * x_CND.size(2);
    AT_DISPATCH_FLOATING_TYPES(x_CND.scalar_type(), "dropout", [&] {
        const scalar_t keep = static_cast<scalar_t>(1.0 / (1.0 - probability));
        for (std::int64_t c = 0; c < run.clients; ++c) {
            scalar_t* x = x_CND.data_ptr<scalar_t>() + c * per_client;
            const std::uint64_t seed =
                mix64(run.dropout_seed[static_cast<std::size_t>(c)] ^ (matrix * 0x9E3779B97F4A7C15ULL));
            at::parallel_for(0, per_client, 1 << 14, [&](std::int64_t begin, std::int64_t end) {
                for (std::int64_t i = begin; i < end; ++i) {
                    const bool dropped = uniform01(mix64(seed + static_cast<std::uint64_t>(i))) < probability;
                    x[i] = dropped ? scalar_t{0} : x[i] * keep;  // selects: a NaN that is dropped does not spread
                }
            });
        }
    });
}

/// x in the adapters' dtype.
at::Tensor wide(const at::Tensor& x, const at::Tensor& factor, Arena& scratch) {
    if (x.scalar_type() == factor.scalar_type()) return x;
    at::Tensor copy = scratch.take(x.sizes(), factor.scalar_type());
    copy.copy_(x);
    return copy;
}

/// The rows that enter A: x itself, or a masked copy in the adapters' dtype.
at::Tensor adapter_input(const LoraPass& pass, const RowRun& run, std::size_t matrix, const at::Tensor& x_ND,
                         Arena& arena) {
    const at::Tensor x = run_rows(x_ND, run);
    if (pass.dropout == 0.0) return x;
    at::Tensor masked = arena.take(x.sizes(), run.group->theta_CP.scalar_type());
    masked.copy_(x);
    apply_dropout(run, matrix, pass.dropout, masked);
    return masked;
}

/// FLOPs of z = x A^T and y += z B^T for a run.
double lora_flops(const RowRun& run, const at::Tensor& x_ND, const at::Tensor& y_NO) {
    return 2.0 * static_cast<double>(run.clients * run.rows_per_client * run.group->width()) *
           static_cast<double>(x_ND.size(1) + y_NO.size(1));
}

at::Tensor flat_rows(const at::Tensor& x_ND, const RowRun& run) {
    return x_ND.narrow(0, run.row0, run.clients * run.rows_per_client);
}

/// Whether our own kernels take these: on the CPU, the factors in what x is computed in, y an activation as x or of the
/// residual stream.
bool use_kernels(const at::Tensor& x, const at::Tensor& y, const at::Tensor& factor) {
    const at::ScalarType computed = x.scalar_type() == at::kBFloat16 ? at::kFloat : x.scalar_type();
    return ops::has_kernels(x) && factor.scalar_type() == computed &&
           (y.scalar_type() == x.scalar_type() || y.scalar_type() == computed);
}

/// target += scale * left right, also where target is narrower than the factors (one rounding, at the end).
void add_product(at::Tensor target, const at::Tensor& left, const at::Tensor& right, double scale, Arena& scratch) {
    if (target.scalar_type() == left.scalar_type()) {
        target.baddbmm_(left, right, 1, scale);
        return;
    }
    at::Tensor product = scratch.take(target.sizes(), left.scalar_type());
    at::bmm_out(product, left, right);
    target.add_(product, scale);
}

/// An uninitialised tensor of this shape on the host, pinned where the tensor is on a GPU.
at::Tensor host_twin(const at::Tensor& x) {
    return at::empty(x.sizes(), x.options().device(at::kCPU).pinned_memory(x.is_cuda()));
}

at::Tensor of_run(const at::Tensor& per_client, const RowRun& run) {
    return per_client.narrow(0, run.first_client, run.clients);
}

}  // namespace

AdapterGroup::AdapterGroup(const AdapterLayout& layout, std::int64_t clients, std::int64_t width, bool with_gradient,
                           const at::TensorOptions& options)
    : layout_(layout), width_(width) {
    std::int64_t size = 0;
    for (const auto& matrix : layout.matrices) {
        offset_a_.push_back(size);
        size += round_to_line(width * matrix.d_in, options);
        offset_b_.push_back(size);
        size += round_to_line(width * matrix.d_out, options);
    }
    theta_CP = at::zeros({clients, size}, options);
    if (with_gradient) gradient_CP = at::zeros({clients, size}, options);
    for (std::size_t m = 0; m < layout.matrices.size(); ++m) {
        const auto& matrix = layout.matrices[m];
        LoraMatrix views{.a_CWD = factor_view(theta_CP, offset_a_[m], width, matrix.d_in),
                         .bt_CWO = factor_view(theta_CP, offset_b_[m], width, matrix.d_out),
                         .grad_a_CWD = {},
                         .grad_bt_CWO = {}};
        if (with_gradient) {
            views.grad_a_CWD = factor_view(gradient_CP, offset_a_[m], width, matrix.d_in);
            views.grad_bt_CWO = factor_view(gradient_CP, offset_b_[m], width, matrix.d_out);
        }
        matrices.push_back(std::move(views));
    }
}

void AdapterGroup::write_row(at::Tensor staged_CP, std::int64_t client, const ClientFactors& factors) const {
    const auto [canonical, lora_rank] = factors;
    if (std::ssize(canonical) != layout_.parameters(lora_rank) || lora_rank > width_) {
        throw bug_error("AdapterGroup::set: {} values for lora_rank {} in width {}", canonical.size(), lora_rank,
                        width_);
    }
    AT_DISPATCH_FLOATING_TYPES(staged_CP.scalar_type(), "AdapterGroup::set", [&] {
        scalar_t* to = staged_CP.data_ptr<scalar_t>() + client * row_size();
        const double* from = canonical.data();
        const auto take = [&](std::int64_t offset, std::int64_t count) {
            std::transform(from, from + count, to + offset, [](double x) { return static_cast<scalar_t>(x); });
            from += count;
        };
        for (std::size_t m = 0; m < layout_.matrices.size(); ++m) {
            take(offset_a_[m], lora_rank * layout_.matrices[m].d_in);
            take(offset_b_[m], lora_rank * layout_.matrices[m].d_out);
        }
    });
}

std::vector<double> AdapterGroup::read_row(const at::Tensor& staged_CP, std::int64_t client,
                                           std::int64_t lora_rank) const {
    std::vector<double> canonical;
    canonical.reserve(static_cast<std::size_t>(layout_.parameters(lora_rank)));
    AT_DISPATCH_FLOATING_TYPES(staged_CP.scalar_type(), "AdapterGroup::get", [&] {
        const scalar_t* from = staged_CP.const_data_ptr<scalar_t>() + client * row_size();
        for (std::size_t m = 0; m < layout_.matrices.size(); ++m) {
            const scalar_t* a = from + offset_a_[m];
            const scalar_t* b = from + offset_b_[m];
            canonical.insert(canonical.end(), a, a + lora_rank * layout_.matrices[m].d_in);
            canonical.insert(canonical.end(), b, b + lora_rank * layout_.matrices[m].d_out);
        }
    });
    return canonical;
}

void AdapterGroup::set(std::int64_t client, std::span<const double> canonical, std::int64_t lora_rank) {
    at::Tensor staged_1P = at::zeros({1, row_size()}, theta_CP.options().device(at::kCPU));
    write_row(staged_1P, 0, {.canonical = canonical, .lora_rank = lora_rank});
    theta_CP.narrow(0, client, 1).copy_(staged_1P);
}

void AdapterGroup::set_all(std::span<const ClientFactors> clients) {
    at::Tensor theta = theta_CP.narrow(0, 0, std::ssize(clients));
    at::Tensor staged = theta.is_cpu() ? theta.zero_() : host_twin(theta).zero_();
    for (std::size_t c = 0; c < clients.size(); ++c) write_row(staged, static_cast<std::int64_t>(c), clients[c]);
    if (!theta.is_cpu()) theta.copy_(staged, /*non_blocking=*/true);
}

std::vector<std::vector<double>> AdapterGroup::get_all(std::span<const std::int64_t> lora_ranks) const {
    const at::Tensor theta = theta_CP.narrow(0, 0, std::ssize(lora_ranks));
    const at::Tensor staged = theta.is_cpu() ? theta : host_twin(theta).copy_(theta);
    std::vector<std::vector<double>> all;
    for (std::size_t c = 0; c < lora_ranks.size(); ++c) {
        all.push_back(read_row(staged, static_cast<std::int64_t>(c), lora_ranks[c]));
    }
    return all;
}

std::vector<double> AdapterGroup::get(std::int64_t client, std::int64_t lora_rank) const {
    return read_row(theta_CP.narrow(0, client, 1).to(at::kCPU), 0, lora_rank);
}

std::vector<double> AdapterGroup::get_gradient(std::int64_t client, std::int64_t lora_rank) const {
    return read_row(gradient_CP.narrow(0, client, 1).to(at::kCPU), 0, lora_rank);
}

std::vector<at::Tensor> lora_forward(const LoraPass& pass, std::size_t matrix, const at::Tensor& x_ND, at::Tensor y_NO,
                                     Arena& arena, Arena& scratch) {
    std::vector<at::Tensor> z_of_run;
    z_of_run.reserve(pass.runs.size());
    for (const RowRun& run : pass.runs) {
        const PartTimer timer(StepPart::lora, lora_flops(run, x_ND, y_NO));
        const std::int64_t mark = scratch.mark();
        const LoraMatrix& lora = run.group->matrices[matrix];
        const at::Tensor x = adapter_input(pass, run, matrix, x_ND, scratch);
        at::Tensor z = arena.take({run.clients, run.rows_per_client, run.group->width()}, lora.a_CWD.scalar_type());
        if (use_kernels(x, y_NO, lora.a_CWD)) {
            ops::lora_forward(x.flatten(0, 1), of_run(lora.a_CWD, run), of_run(lora.bt_CWO, run), run.scale,
                              flat_rows(y_NO, run), z);
        } else {
            at::bmm_out(z, wide(x, lora.a_CWD, scratch), of_run(lora.a_CWD, run).transpose(1, 2));
            add_product(run_rows(y_NO, run), z, of_run(lora.bt_CWO, run), run.scale, scratch);
        }
        z_of_run.push_back(std::move(z));
        scratch.release(mark);
    }
    return z_of_run;
}

void lora_backward(const LoraPass& pass, std::size_t matrix, const at::Tensor& dy_NO, const at::Tensor& x_ND,
                   const std::vector<at::Tensor>& z_of_run, at::Tensor dx_ND, Arena& scratch) {
    for (std::size_t r = 0; r < pass.runs.size(); ++r) {
        const RowRun& run = pass.runs[r];
        const PartTimer timer(StepPart::lora, (dx_ND.defined() ? 2.0 : 1.5) * lora_flops(run, x_ND, dy_NO));
        const std::int64_t mark = scratch.mark();
        const LoraMatrix& lora = run.group->matrices[matrix];
        const at::Tensor x = adapter_input(pass, run, matrix, x_ND, scratch);
        if (pass.dropout == 0.0 && use_kernels(x, dy_NO, lora.a_CWD)) {
            ops::lora_backward(x.flatten(0, 1), flat_rows(dy_NO, run), z_of_run[r], of_run(lora.a_CWD, run),
                               of_run(lora.bt_CWO, run), run.scale, of_run(lora.grad_a_CWD, run),
                               of_run(lora.grad_bt_CWO, run), dx_ND.defined() ? flat_rows(dx_ND, run) : dx_ND);
            scratch.release(mark);
            continue;
        }
        const at::Tensor dy = wide(run_rows(dy_NO, run), lora.a_CWD, scratch);
        const at::Tensor wide_x = wide(x, lora.a_CWD, scratch);
        at::Tensor dz = scratch.take({run.clients, run.rows_per_client, run.group->width()}, dy.scalar_type());
        at::bmm_out(dz, dy, of_run(lora.bt_CWO, run).transpose(1, 2));
        dz.mul_(run.scale);
        of_run(lora.grad_bt_CWO, run).baddbmm_(z_of_run[r].transpose(1, 2), dy, 0, run.scale);
        of_run(lora.grad_a_CWD, run).baddbmm_(dz.transpose(1, 2), wide_x, 0, 1);
        if (dx_ND.defined()) {
            at::Tensor dx = run_rows(dx_ND, run);
            if (pass.dropout == 0.0) {
                add_product(dx, dz, of_run(lora.a_CWD, run), 1.0, scratch);
            } else {
                at::Tensor masked = scratch.take(x.sizes(), dz.scalar_type());
                at::bmm_out(masked, dz, of_run(lora.a_CWD, run));
                apply_dropout(run, matrix, pass.dropout, masked);
                dx.add_(masked);
            }
        }
        scratch.release(mark);
    }
}

}  // namespace hetlora
