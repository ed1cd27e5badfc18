#include "hetlora/app/head_export.hpp"

namespace hetlora {

void add_head(AdapterExport& about, const ClassHeadShape& shape, std::span<const double> values) {
    about.task_type = "SEQ_CLS";
    about.modules_to_save = shape.modules();
    for (const ClassHeadPart& part : shape.parts()) {
        SavedTensor saved{
            .name = part.name,
            .shape = {part.rows},
            .values = values.subspan(static_cast<std::size_t>(part.first), static_cast<std::size_t>(part.values()))};
        if (part.columns > 0) saved.shape.push_back(part.columns);
        about.saved.push_back(std::move(saved));
    }
}

}  // namespace hetlora
