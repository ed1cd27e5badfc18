// A classification head as the files of a PEFT adapter carry it: whole tensors of the modules_to_save.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "hetlora/model/class_head.hpp"
#include "hetlora/store/run_folder_adapter.hpp"

namespace hetlora {

/// Adds the head to what an adapter's files say: peft loads both onto the family's ForSequenceClassification class.
/// @param values of the head; they must outlive the writing
void add_head(AdapterExport& about, const ClassHeadShape& shape, std::span<const double> values);

}  // namespace hetlora
