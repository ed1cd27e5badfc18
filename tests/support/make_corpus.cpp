#include "make_corpus.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <utility>

#include "hetlora/base/random.hpp"
#include "hetlora/store/hdf5_handle.hpp"

namespace hetlora::test {
namespace {

/// Integer in [begin, end) from hashed coordinates.
template <typename... Coordinates>
int draw(const SyntheticOptions& options, int begin, int end, Coordinates... coordinates) {
    const double u = uniform01(hash_seed(options.seed, Purpose::test, coordinates...));
    return begin + static_cast<int>(u * (end - begin));
}

}  // namespace

void RawCorpus::add_client(const std::string& name, bool held_out) {
    client_name.push_back(name);
    client_held_out.push_back(held_out ? 1 : 0);
    client_offset.push_back(client_offset.back());
}

void RawCorpus::add_sequence(int part, const std::vector<std::int32_t>& token_ids,
                             const std::vector<std::uint8_t>& loss_mask, int label) {
    if (token_ids.empty() || token_ids.size() != loss_mask.size())
        throw std::invalid_argument("ids and mask differ in length");
    ids.insert(ids.end(), token_ids.begin(), token_ids.end());
    mask.insert(mask.end(), loss_mask.begin(), loss_mask.end());
    sequence_offset.push_back(static_cast<std::int64_t>(ids.size()));
    sequence_client.push_back(static_cast<std::int32_t>(client_name.size()) - 1);
    sequence_part.push_back(static_cast<std::uint8_t>(part));
    sequence_label.push_back(label);
    std::size_t prompt = loss_mask.size();
    while (prompt > 0 && loss_mask[prompt - 1] == 0) --prompt;
    while (prompt > 0 && loss_mask[prompt - 1] == 1) --prompt;
    const bool any = std::ranges::find(loss_mask, 1) != loss_mask.end();
    sequence_prompt_length.push_back(static_cast<std::int32_t>(any ? prompt : loss_mask.size()));
    ++client_offset.back();
}

void RawCorpus::count_losses() {
    sequence_n_loss.clear();
    for (std::size_t s = 0; s + 1 < sequence_offset.size(); ++s) {
        sequence_n_loss.push_back(static_cast<std::int32_t>(
            std::count(mask.begin() + sequence_offset[s] + 1, mask.begin() + sequence_offset[s + 1], 1)));
    }
}

void RawCorpus::set_vocabulary(std::int64_t size) {
    vocab_size = size;
    vocab_bytes.clear();
    vocab_offset = {0};
    for (std::int64_t id = 0; id < size; ++id) {
        for (const char c : fmt::format("<{}>", id)) vocab_bytes.push_back(static_cast<std::uint8_t>(c));
        vocab_offset.push_back(static_cast<std::int64_t>(vocab_bytes.size()));
    }
}

RawCorpus synthetic_corpus(const SyntheticOptions& options) {
    RawCorpus corpus;
    corpus.texts = {{"name", "synthetic"},
                    {"creator", "hetlora tests"},
                    {"license", "CC0-1.0"},
                    {"tokenizer_sha256", std::string(64, '0')}};
    corpus.set_vocabulary(options.vocab_size);
    corpus.bos_id = 1;
    corpus.eos_id = 2;
    for (int label = 0; label < options.n_labels; ++label)
        corpus.label_name.push_back("label " + std::to_string(label));
    for (int c = 0; c < options.n_clients; ++c) {
        const bool held_out = c >= options.n_clients - options.n_held_out;
        corpus.add_client("person " + std::to_string(c), held_out);
        const int counts[3] = {held_out ? 0 : options.n_train, options.n_valid, options.n_test};
        for (int part = 0; part < 3; ++part) {
            for (int s = 0; s < counts[part]; ++s) {
                const int length = draw(options, options.min_length, options.max_length + 1, 1, c, part, s);
                std::vector<std::int32_t> ids;
                std::vector<std::uint8_t> mask;
                for (int turn = 0; static_cast<int>(ids.size()) < length; ++turn) {
                    const int tokens = draw(options, 1, 7, 2, c, part, s, turn);
                    for (int i = 0; i < tokens && static_cast<int>(ids.size()) < length; ++i) {
                        ids.push_back(draw(options, options.token_begin, options.token_end, 3, c, part, s,
                                           static_cast<int>(ids.size())));
                        mask.push_back(turn % 2 == 1 ? 1 : 0);
                    }
                }
                if (length > 1) mask.back() = 1;
                corpus.add_sequence(part, ids, mask,
                                    options.n_labels > 0 ? draw(options, 0, options.n_labels, 4, c, part, s) : -1);
            }
        }
    }
    return corpus;
}

void write_corpus(const std::filesystem::path& path, const RawCorpus& corpus,
                  const std::vector<std::string>& leave_out) {
    std::filesystem::remove(path);
    hdf5::File file = hdf5::File::create(path);
    file.write_attribute("schema_name", corpus.schema_name);
    file.write_attribute("schema_version", corpus.schema_version);
    file.write_attribute("vocab_size", corpus.vocab_size);
    file.write_attribute("bos_id", corpus.bos_id);
    file.write_attribute("eos_id", corpus.eos_id);
    for (const auto& [key, value] : corpus.texts) file.write_attribute(key, value);
    {
        const auto wanted = [&](const std::string& name) {
            return std::ranges::find(leave_out, name) == leave_out.end();
        };
        const auto array = [&](hdf5::Group& group, const std::string& full_name, const auto& values) {
            using T = typename std::decay_t<decltype(values)>::value_type;
            const std::string name = full_name.substr(full_name.rfind('/') + 1);
            if (wanted(full_name)) group.create_array<T>(name, std::span<const T>(values));
        };
        hdf5::Group tokens = file.create_group("tokens");
        array(tokens, "/tokens/ids", corpus.ids);
        array(tokens, "/tokens/mask", corpus.mask);
        hdf5::Group sequences = file.create_group("sequences");
        array(sequences, "/sequences/offset", corpus.sequence_offset);
        array(sequences, "/sequences/client", corpus.sequence_client);
        array(sequences, "/sequences/part", corpus.sequence_part);
        array(sequences, "/sequences/label", corpus.sequence_label);
        array(sequences, "/sequences/prompt_length", corpus.sequence_prompt_length);
        hdf5::Group clients = file.create_group("clients");
        array(clients, "/clients/offset", corpus.client_offset);
        array(clients, "/clients/held_out", corpus.client_held_out);
        if (wanted("/clients/name")) clients.create_strings("name", corpus.client_name);
        hdf5::Group vocab = file.create_group("vocab");
        array(vocab, "/vocab/bytes", corpus.vocab_bytes);
        array(vocab, "/vocab/offset", corpus.vocab_offset);
        if (!corpus.sequence_group.empty()) array(sequences, "/sequences/group", corpus.sequence_group);
        if (!corpus.sequence_n_loss.empty()) array(sequences, "/sequences/n_loss", corpus.sequence_n_loss);
        if (!corpus.group_name.empty()) file.create_group("groups").create_strings("name", corpus.group_name);
        if (!corpus.label_name.empty()) file.create_group("labels").create_strings("name", corpus.label_name);
    }
    file.close();
}

TemporaryFolder::TemporaryFolder() {
    static std::atomic<int> counter = 0;  // several folders in one process
    path_ = std::filesystem::temp_directory_path() /
            ("hetlora_test_" + std::to_string(::getpid()) + "_" + std::to_string(counter++));
    std::filesystem::create_directories(path_);
}

TemporaryFolder::~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

}  // namespace hetlora::test
