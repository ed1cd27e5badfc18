#include "hetlora/model/lora.hpp"

#include <algorithm>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"

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

/// The rows that enter A: x itself, or a masked copy.
at::Tensor adapter_input(const LoraPass& pass, const RowRun& run, std::size_t matrix, const at::Tensor& x_ND,
                         Arena& arena) {
    const at::Tensor x = run_rows(x_ND, run);
    if (pass.dropout == 0.0) return x;
    at::Tensor masked = arena.take(x.sizes());
    masked.copy_(x);
    apply_dropout(run, matrix, pass.dropout, masked);
    return masked;
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

void AdapterGroup::set(std::int64_t client, std::span<const double> canonical, std::int64_t lora_rank) {
    if (std::ssize(canonical) != layout_.parameters(lora_rank) || lora_rank > width_) {
        throw bug_error("AdapterGroup::set: {} values for lora_rank {} in width {}", canonical.size(), lora_rank,
                        width_);
    }
    at::Tensor row = at::zeros({row_size()}, at::kDouble);
    double* to = row.data_ptr<double>();
    const double* from = canonical.data();
    for (std::size_t m = 0; m < layout_.matrices.size(); ++m) {
        const std::int64_t size_a = lora_rank * layout_.matrices[m].d_in;
        const std::int64_t size_b = lora_rank * layout_.matrices[m].d_out;
        std::copy_n(from, size_a, to + offset_a_[m]);
        std::copy_n(from + size_a, size_b, to + offset_b_[m]);
        from += size_a + size_b;
    }
    theta_CP.select(0, client).copy_(row);
}

std::vector<double> AdapterGroup::read(const at::Tensor& arena, std::int64_t client, std::int64_t lora_rank) const {
    const at::Tensor row = arena.select(0, client).to(at::kCPU, at::kDouble).contiguous();
    const double* from = row.const_data_ptr<double>();
    std::vector<double> canonical;
    canonical.reserve(static_cast<std::size_t>(layout_.parameters(lora_rank)));
    for (std::size_t m = 0; m < layout_.matrices.size(); ++m) {
        const double* a = from + offset_a_[m];
        const double* b = from + offset_b_[m];
        canonical.insert(canonical.end(), a, a + lora_rank * layout_.matrices[m].d_in);
        canonical.insert(canonical.end(), b, b + lora_rank * layout_.matrices[m].d_out);
    }
    return canonical;
}

std::vector<double> AdapterGroup::get(std::int64_t client, std::int64_t lora_rank) const {
    return read(theta_CP, client, lora_rank);
}

std::vector<double> AdapterGroup::get_gradient(std::int64_t client, std::int64_t lora_rank) const {
    return read(gradient_CP, client, lora_rank);
}

std::vector<at::Tensor> lora_forward(const LoraPass& pass, std::size_t matrix, const at::Tensor& x_ND, at::Tensor y_NO,
                                     Arena& arena) {
    std::vector<at::Tensor> z_of_run;
    z_of_run.reserve(pass.runs.size());
    for (const RowRun& run : pass.runs) {
        const LoraMatrix& lora = run.group->matrices[matrix];
        const at::Tensor x = adapter_input(pass, run, matrix, x_ND, arena);
        at::Tensor z = arena.take({run.clients, run.rows_per_client, run.group->width()});
        at::bmm_out(z, x, of_run(lora.a_CWD, run).transpose(1, 2));
        run_rows(y_NO, run).baddbmm_(z, of_run(lora.bt_CWO, run), 1, run.scale);
        z_of_run.push_back(std::move(z));
    }
    return z_of_run;
}

void lora_backward(const LoraPass& pass, std::size_t matrix, const at::Tensor& dy_NO, const at::Tensor& x_ND,
                   const std::vector<at::Tensor>& z_of_run, at::Tensor dx_ND, Arena& arena) {
    const std::int64_t mark = arena.mark();
    for (std::size_t r = 0; r < pass.runs.size(); ++r) {
        const RowRun& run = pass.runs[r];
        const LoraMatrix& lora = run.group->matrices[matrix];
        const at::Tensor x = adapter_input(pass, run, matrix, x_ND, arena);
        const at::Tensor dy = run_rows(dy_NO, run);
        at::Tensor dz = arena.take({run.clients, run.rows_per_client, run.group->width()});
        at::bmm_out(dz, dy, of_run(lora.bt_CWO, run).transpose(1, 2));
        dz.mul_(run.scale);
        of_run(lora.grad_bt_CWO, run).baddbmm_(z_of_run[r].transpose(1, 2), dy, 0, run.scale);
        of_run(lora.grad_a_CWD, run).baddbmm_(dz.transpose(1, 2), x, 0, 1);
        if (!dx_ND.defined()) continue;
        at::Tensor dx = run_rows(dx_ND, run);
        if (pass.dropout == 0.0) {
            dx.baddbmm_(dz, of_run(lora.a_CWD, run), 1, 1);
        } else {
            at::Tensor masked = arena.take(x.sizes());
            at::bmm_out(masked, dz, of_run(lora.a_CWD, run));
            apply_dropout(run, matrix, pass.dropout, masked);
            dx.add_(masked);
        }
    }
    arena.release(mark);
}

}  // namespace hetlora
