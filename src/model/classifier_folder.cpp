// See hetlora/model/classifier_folder.hpp.
#include "hetlora/model/classifier_folder.hpp"

#include <nlohmann/json.hpp>

#include "hetlora/base/error.hpp"
#include "hetlora/base/file_io.hpp"

namespace hetlora {
namespace {

std::string classifier_config(const SavedClassifier& classifier, at::ScalarType dtype) {
    ModelConfig config = classifier.weights.config;
    if (config.pad_id < 0 && !config.eos_ids.empty()) config.pad_id = config.eos_ids.front();
    auto object = nlohmann::json::parse(write_model_config(config, dtype_name(dtype)));
    object["architectures"] = nlohmann::json::array({config.family->classifier_class()});
    object["problem_type"] = "single_label_classification";
    for (std::size_t k = 0; k < classifier.labels.size(); ++k) {
        object["id2label"][std::to_string(k)] = classifier.labels[k];
        object["label2id"][classifier.labels[k]] = k;
    }
    return object.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

/// The body's and the head's tensors; the head's are views of its values.
std::vector<NamedWeight> classifier_tensors(const SavedClassifier& classifier) {
    std::vector<NamedWeight> tensors = named_weights(classifier.weights);
    std::erase_if(tensors, [](const NamedWeight& one) { return one.name == "lm_head.weight"; });
    for (const ClassHeadPart& part : classifier.shape.parts()) {
        const at::Tensor values =
            at::from_blob(const_cast<double*>(classifier.head.data()) + part.first, {part.values()}, at::kDouble);
        tensors.push_back({part.name, part.columns == 0 ? values : values.view({part.rows, part.columns})});
    }
    return tensors;
}

}  // namespace

void save_classifier(const SavedClassifier& classifier, const std::filesystem::path& folder, at::ScalarType dtype) {
    if (std::ssize(classifier.head) != classifier.shape.parameters() ||
        std::ssize(classifier.labels) != classifier.shape.labels) {
        throw bug_error("a head of {} values and {} names for {} values and {} labels", classifier.head.size(),
                        classifier.labels.size(), classifier.shape.parameters(), classifier.shape.labels);
    }
    std::filesystem::create_directories(folder);
    save_tensors(classifier_tensors(classifier), folder, dtype);
    write_file_atomically(folder / "config.json", classifier_config(classifier, dtype));
}

}  // namespace hetlora
