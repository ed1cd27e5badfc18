// /choices of prepared data in HDF5: the implementation of store/corpus_choices.hpp.
//
//     /choices/ids              int32 [tokens]       the answers one after another
//     /choices/offset           int64 [answers + 1]  first token of each
//     /choices/sequence_offset  int64 [n_seq + 1]    first answer of each sequence  } where each sequence has its own
//     /choices/answer           int32 [n_seq]        the right one among them, or -1 } list; else answer i is label i
#include "hdf5_corpus_pieces.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/store/corpus_choices.hpp"
#include "hetlora/store/hdf5_handle.hpp"

namespace hetlora {

using namespace corpus_pieces;

struct CorpusChoices::Impl {
    hdf5::File file;
    hdf5::Dataset ids, offset, sequence_offset, answer;
    std::int64_t vocab_size = 0;
    std::int64_t n_answers = 0;
    bool by_label = true;

    explicit Impl(const std::filesystem::path& path) : file(open_prepared(path)) {
        using enum hdf5::ElementType;
        if (!file.has("choices")) {
            throw input_error(
                "the data offers no answers to choose from - {} - prepare it again with --label-choices (the words of "
                "the labels) or with --choices-field and --answer-field, or leave choice_accuracy and macro_f1 out of "
                "evaluation.metrics",
                path.string());
        }
        vocab_size = read_attributes(file).vocab_size;
        const hdf5::Group group = file.open_group("choices");
        ids = open_array(group, "ids", i32, -1);
        offset = open_array(group, "offset", i64, -1);
        n_answers = offset.rows() - 1;
        if (n_answers < 1) throw broken(offset.where(), "there is no answer");
        const auto offsets = offset.read_all<std::int64_t>();
        check_ends(offsets.front(), offsets.back(), ids.rows(), offset.where());
        check_offsets(offsets, 0, true, offset.where());
        by_label = !group.has("sequence_offset");
        if (by_label) {
            const std::int64_t n_labels =
                file.has("labels") ? file.open_group("labels").open_dataset("name").rows() : 0;
            if (n_labels != n_answers)
                throw broken(offset.where(), fmt::format("{} answers for {} labels", n_answers, n_labels));
            return;
        }
        const std::int64_t n_sequences = file.open_dataset("sequences/client").rows();
        sequence_offset = open_array(group, "sequence_offset", i64, n_sequences + 1);
        answer = open_array(group, "answer", i32, n_sequences);
        const auto first = sequence_offset.read_all<std::int64_t>();
        check_ends(first.front(), first.back(), n_answers, sequence_offset.where());
        check_offsets(first, 0, false, sequence_offset.where());
    }

    [[nodiscard]] std::vector<std::vector<std::int32_t>> read(IndexRange range) const {
        const auto offsets = read_rows<std::int64_t>(offset, {range.begin, range.end + 1});
        const auto tokens = read_rows<std::int32_t>(ids, {offsets.front(), offsets.back()});
        for (const std::int32_t id : tokens) {
            if (id < 0 || id >= vocab_size)
                throw broken(ids.where(), fmt::format("token id {} is outside the vocabulary of {}", id, vocab_size));
        }
        std::vector<std::vector<std::int32_t>> answers;
        for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
            answers.emplace_back(tokens.begin() + (offsets[i] - offsets.front()),
                                 tokens.begin() + (offsets[i + 1] - offsets.front()));
        }
        return answers;
    }
};

CorpusChoices::CorpusChoices(const std::filesystem::path& path) : impl_(std::make_unique<Impl>(path)) {}
CorpusChoices::~CorpusChoices() = default;
CorpusChoices::CorpusChoices(CorpusChoices&&) noexcept = default;
CorpusChoices& CorpusChoices::operator=(CorpusChoices&&) noexcept = default;

bool CorpusChoices::by_label() const noexcept { return impl_->by_label; }
std::int64_t CorpusChoices::labels() const noexcept { return impl_->by_label ? impl_->n_answers : 0; }

SequenceChoices CorpusChoices::of(std::int64_t sequence, std::int32_t label) const {
    if (impl_->by_label) {
        if (label < 0) return {};
        return {.answers = impl_->read({0, impl_->n_answers}), .right = label};
    }
    const std::int32_t right = read_rows<std::int32_t>(impl_->answer, {sequence, sequence + 1}).front();
    if (right < 0) return {};
    const auto range = read_rows<std::int64_t>(impl_->sequence_offset, {sequence, sequence + 2});
    if (right >= range[1] - range[0]) {
        throw broken(fmt::format("{}, sequence {}", impl_->answer.where(), sequence),
                     fmt::format("answer {} of {}", right, range[1] - range[0]));
    }
    return {.answers = impl_->read({range[0], range[1]}), .right = right};
}

}  // namespace hetlora
