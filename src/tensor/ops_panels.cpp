// Frozen matrices in panels: packing, and their products shared out among threads; see tensor/ops.hpp.
#include "hetlora/tensor/arena.hpp"
#include "ops_dispatch.hpp"

namespace hetlora::ops {
namespace {

/// Calls body(T{}) with the element type of a matrix that can have panels.
template <typename Body>
void with_panel_scalar(const at::Tensor& tensor, Body body) {
    with_scalar(tensor, [&](auto zero) {
        if constexpr (std::is_same_v<decltype(zero), Bfloat16>) {
            throw bug_error("bfloat16 has no panels");
        } else {
            body(zero);
        }
    });
}

}  // namespace

at::Tensor pack_panels(const at::Tensor& w_OI) {
    at::Tensor panels;
    with_panel_scalar(w_OI, [&](auto zero) {
        using S = decltype(zero);
        constexpr std::int64_t columns = panel_columns<S>;
        const std::int64_t outputs = w_OI.size(0);
        const std::int64_t count = (outputs + columns - 1) / columns;
        panels = at::empty({count, w_OI.size(1), columns}, w_OI.options());
        prefer_huge_pages(panels);
        for (std::int64_t p = 0; p < count; ++p) {
            const std::int64_t used = std::min(columns, outputs - p * columns);
            at::Tensor panel_IC = panels.select(0, p);
            panel_IC.narrow(1, 0, used).copy_(w_OI.narrow(0, p * columns, used).t());
            panel_IC.narrow(1, used, columns - used).zero_();
        }
    });
    return panels;
}

void panel_product(const at::Tensor& x, const at::Tensor& panels, const at::Tensor& addend, at::Tensor y) {
    with_panel_scalar(x, [&](auto zero) {
        using S = decltype(zero);
        constexpr std::int64_t columns = panel_columns<S>;
        const std::int64_t rows = x.size(0);
        const std::int64_t inputs = x.size(1);
        const std::int64_t outputs = y.size(1);
        const bool whole_rows = x.stride(1) == 1 && y.stride(1) == 1 && (!addend.defined() || addend.stride(1) == 1);
        if (!whole_rows || panels.size(1) != inputs || panels.size(0) * columns < outputs) {
            throw bug_error("panel_product: {} inputs and {} outputs do not fit {} panels of {} inputs", inputs,
                            outputs, panels.size(0), panels.size(1));
        }
        const auto part = [&](std::int64_t row, std::int64_t row_end, std::int64_t panel, std::int64_t panel_end) {
            const std::int64_t output = panel * columns;
            const PanelShape shape{.rows = row_end - row,
                                   .inputs = inputs,
                                   .outputs = std::min(outputs, panel_end * columns) - output,
                                   .x_stride = x.stride(0),
                                   .y_stride = y.stride(0),
                                   .addend_stride = addend.defined() ? addend.stride(0) : 0};
            kernels<S>().panel_product(
                data_of<S>(x) + row * shape.x_stride, data_of<S>(panels) + output * inputs,
                addend.defined() ? data_of<S>(addend) + row * shape.addend_stride + output : nullptr,
                data_of<S>(y) + row * shape.y_stride + output, shape);
        };
        // Threads share the weights where there are many, so that each is read once; else the rows.
        const std::int64_t threads = at::get_num_threads();
        const std::int64_t count = panels.size(0);
        if (threads == 1) return part(0, rows, 0, count);
        constexpr std::int64_t row_block = 8;
        if (count >= 8 * threads) {
            at::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) { part(0, rows, begin, end); });
        } else {
            at::parallel_for(0, (rows + row_block - 1) / row_block, 1, [&](std::int64_t begin, std::int64_t end) {
                part(begin * row_block, std::min(rows, end * row_block), 0, count);
            });
        }
    });
}

}  // namespace hetlora::ops
