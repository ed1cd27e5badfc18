// A model with a classification head as a Hugging Face folder of the family's ForSequenceClassification class.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "hetlora/model/class_head.hpp"
#include "hetlora/model/weights.hpp"

namespace hetlora {

struct SavedClassifier {
    const LlamaWeights& weights;
    const ClassHeadShape& shape;
    std::span<const double> head;     ///< shape.parameters() values
    std::vector<std::string> labels;  ///< names of the classes
};

/// Writes config.json (id2label, problem_type, and pad_token_id: of a decoder that has none its first end of sequence,
/// since its class takes the row of the last token that is no padding) and model.safetensors (dtype float32, float64
/// or bfloat16), without the vocabulary's head.
/// @throws Error (bug) where values or names do not fit the shape; Error (environment) if the disk refuses
void save_classifier(const SavedClassifier& classifier, const std::filesystem::path& folder, at::ScalarType dtype);

}  // namespace hetlora
