// Clients, windows and evaluation sets; what is read when is described in corpus.hpp.
#include "hetlora/data/corpus.hpp"

#include <algorithm>

#include "corpus_scan.hpp"
#include "hetlora/base/error.hpp"

namespace hetlora {
namespace {

constexpr std::size_t max_cached_windows = 1U << 20;  // 16 MiB

void check_options(const CorpusOptions& options) {
    check_window_shape({.length = options.sequence_length, .overlap = options.overlap});
    if (options.partition != PartitionKind::natural && options.partition_clients < 1) {
        throw usage_error(
            "partition {} needs the number of clients, and it is {} - data.partition_clients - give at least 1",
            partition_name(options.partition), options.partition_clients);
    }
    if (options.min_windows < 0)
        throw usage_error("{} windows at least - data.min_windows - give 0 or more", options.min_windows);
    if (options.max_windows_per_client < 0) {
        throw usage_error("{} windows at most - data.max_windows_per_client - give 0 (all) or more",
                          options.max_windows_per_client);
    }
}

}  // namespace

Corpus::Corpus(const std::filesystem::path& path, const CorpusOptions& options)
    : options_((check_options(options), options)),
      shape_{.length = options.sequence_length, .overlap = options.overlap},
      file_(path) {
    if (options_.partition != PartitionKind::natural) deal();
    find_eligible();
}

std::int64_t Corpus::n_clients() const noexcept {
    return options_.partition == PartitionKind::natural ? file_.n_clients() : options_.partition_clients;
}

void Corpus::check_client(std::int64_t client) const {
    if (client < 0 || client >= n_clients()) {
        throw bug_error("client {} of {} - data {} - clients count from 0", client, n_clients(), file_.path().string());
    }
}

std::string Corpus::client_name(std::int64_t client) const {
    check_client(client);
    return client_names({client, client + 1}).front();
}

std::vector<std::string> Corpus::client_names(IndexRange clients) const {
    if (options_.partition == PartitionKind::natural) return file_.client_names(clients);
    std::vector<std::string> names;
    for (std::int64_t client = clients.begin; client < clients.end; ++client)
        names.push_back(fmt::format("{}-{:06}", partition_name(options_.partition), client));
    return names;
}

void Corpus::deal() {
    std::vector<LabelledSequence> by_part[3];
    bool labelled = false;
    for_each_sequence([&](std::int32_t sequence, const SequenceInfo& info) {
        if (file_.held_out(info.client)) return;
        const std::int32_t label = options_.dirichlet_by_group ? info.group : info.label;
        by_part[static_cast<int>(info.part)].push_back({.sequence = sequence, .label = label});
        labelled = labelled || label >= 0;
    });
    if (options_.partition == PartitionKind::dirichlet && !labelled) {
        const char* what = options_.dirichlet_by_group ? "group" : "label";
        throw input_error(
            "no sequence has a {}, which the dirichlet partition shares out by - {}:/sequences/{} - "
            "use data.partition = natural, iid or quantity, set data.dirichlet_by, or prepare the data with --{}-field",
            what, file_.path().string(), what, what);
    }
    const DealOptions deal_options{.kind = options_.partition,
                                   .n_clients = options_.partition_clients,
                                   .dirichlet_alpha = options_.dirichlet_alpha,
                                   .quantity_sigma = options_.quantity_sigma,
                                   .seed = options_.seed_partition};
    for (int part = 0; part < 3; ++part)
        deals_.push_back(deal_sequences(by_part[part], static_cast<Part>(part), deal_options));
}

/// [n_sequences] of the dealt partitions: whose it is in this part, -1 for nobody's.
std::vector<std::int32_t> Corpus::owners(Part part) const {
    std::vector<std::int32_t> owner;
    if (deals_.empty()) return owner;
    owner.assign(static_cast<std::size_t>(file_.n_sequences()), -1);
    for (std::int64_t client = 0; client < n_clients(); ++client) {
        for (const std::int32_t s : deals_[static_cast<std::size_t>(part)].of(client))
            owner[static_cast<std::size_t>(s)] = static_cast<std::int32_t>(client);
    }
    return owner;
}

bool Corpus::has_loss(const SequenceInfo& info) const {
    if (info.n_loss >= 0) return info.n_loss > 0;                                  // checked by windows_of
    if (info.prompt_length >= 1 && info.prompt_length < info.length) return true;  // checked by windows_of
    const auto mask = file_.read_mask({info.offset + 1, info.offset + info.length});
    return std::ranges::find(mask, 1) != mask.end();
}

std::vector<std::uint8_t> Corpus::clients_with_loss() const {
    std::vector<std::uint8_t> found(static_cast<std::size_t>(n_clients()), 0);
    const auto owner = owners();
    for_each_sequence([&](std::int32_t sequence, const SequenceInfo& info) {
        if (info.part != Part::train) return;
        const std::int32_t client = owner.empty() ? info.client : owner[static_cast<std::size_t>(sequence)];
        if (client < 0 || found[static_cast<std::size_t>(client)] != 0) return;
        found[static_cast<std::size_t>(client)] = has_loss(info) ? 1 : 0;
    });
    return found;
}

std::vector<std::int64_t> Corpus::count_train_windows() const {
    std::vector<std::int64_t> counts(static_cast<std::size_t>(n_clients()), 0);
    const auto owner = owners();
    std::vector<IndexedSequence> block;
    const auto count_block = [&] {
        for_each_mask(block, [&](const IndexedSequence& s, std::span<const std::uint8_t> mask) {
            const std::int32_t client = owner.empty() ? s.info.client : owner[static_cast<std::size_t>(s.sequence)];
            counts[static_cast<std::size_t>(client)] += static_cast<std::int64_t>(list_windows(mask, shape_).size());
        });
        block.clear();
    };
    for_each_sequence([&](std::int32_t sequence, const SequenceInfo& info) {
        if (info.part != Part::train || (!owner.empty() && owner[static_cast<std::size_t>(sequence)] < 0)) return;
        block.push_back({.sequence = sequence, .info = info});
        if (static_cast<std::int64_t>(block.size()) == index_block) count_block();
    });
    count_block();
    return counts;
}

std::vector<std::int64_t> Corpus::client_loss_tokens() const {
    const auto limit = options_.max_windows_per_client;
    std::vector<std::int64_t> tokens(static_cast<std::size_t>(n_clients()), 0);
    std::vector<std::int64_t> windows(limit > 0 ? tokens.size() : 0, 0);  // so far; sequences come in rising order
    std::vector<std::uint8_t> takes_part(tokens.size(), 0);
    for (const std::int32_t client : eligible_) takes_part[static_cast<std::size_t>(client)] = 1;
    const auto owner = owners();
    const auto owner_of = [&](std::int32_t sequence, const SequenceInfo& info) {
        return static_cast<std::size_t>(owner.empty() ? info.client : owner[static_cast<std::size_t>(sequence)]);
    };
    std::vector<IndexedSequence> block;
    const auto count_block = [&] {
        for_each_mask(block, [&](const IndexedSequence& s, std::span<const std::uint8_t> mask) {
            const std::size_t client = owner_of(s.sequence, s.info);
            if (limit == 0) {
                tokens[client] += std::ranges::count(mask.subspan(1), std::uint8_t{1});
                return;
            }
            for (const Window& window : list_windows(mask, shape_)) {
                if (windows[client]++ < limit) tokens[client] += window.n_loss;
            }
        });
        block.clear();
    };
    for_each_sequence([&](std::int32_t sequence, const SequenceInfo& info) {
        if (info.part != Part::train || (!owner.empty() && owner[static_cast<std::size_t>(sequence)] < 0)) return;
        const std::size_t client = owner_of(sequence, info);
        if (takes_part[client] == 0) return;
        if (limit == 0 && info.n_loss >= 0) {
            tokens[client] += info.n_loss;
            return;
        }
        block.push_back({.sequence = sequence, .info = info});
        if (static_cast<std::int64_t>(block.size()) == index_block) count_block();
    });
    count_block();
    return tokens;
}

void Corpus::find_eligible() {
    if (options_.min_windows > 1) counts_ = count_train_windows();
    const auto with_loss = counts_.empty() ? clients_with_loss() : std::vector<std::uint8_t>{};
    for (std::int64_t client = 0; client < n_clients(); ++client) {
        const auto c = static_cast<std::size_t>(client);
        // Held-out clients have no training sequence (checked when the file is opened), so they never get here.
        const bool enough = counts_.empty() ? with_loss[c] != 0 : counts_[c] >= options_.min_windows;
        if (enough) eligible_.push_back(static_cast<std::int32_t>(client));
    }
    if (options_.max_windows_per_client > 0) {
        for (auto& count : counts_) count = std::min(count, options_.max_windows_per_client);
    }
}

std::vector<Corpus::IndexedSequence> Corpus::sequences_of(std::int64_t client, Part part) const {
    check_client(client);
    std::vector<IndexedSequence> result;
    if (!deals_.empty()) {
        for (const std::int32_t s : deals_[static_cast<std::size_t>(part)].of(client)) {
            result.push_back({.sequence = s, .info = file_.sequence(s)});
        }
        return result;
    }
    const IndexRange range = file_.sequences_of(client);
    const auto infos = file_.sequences(range);
    for (std::size_t i = 0; i < infos.size(); ++i) {
        if (infos[i].part != part) continue;
        result.push_back(
            {.sequence = static_cast<std::int32_t>(range.begin + static_cast<std::int64_t>(i)), .info = infos[i]});
    }
    return result;
}

ClientSize Corpus::client_size(std::int64_t client) const {
    ClientSize size;
    for (const IndexedSequence& s : sequences_of(client, Part::train)) {
        ++size.n_train_sequences;
        size.n_train_tokens += s.info.length;
    }
    return size;
}

std::vector<ClientSize> Corpus::client_sizes() const {
    std::vector<ClientSize> sizes(static_cast<std::size_t>(n_clients()));
    const auto owner = owners();
    for_each_sequence([&](std::int32_t sequence, const SequenceInfo& info) {
        const std::int32_t client = owner.empty() ? info.client : owner[static_cast<std::size_t>(sequence)];
        if (info.part != Part::train || client < 0) return;
        ClientSize& size = sizes[static_cast<std::size_t>(client)];
        ++size.n_train_sequences;
        size.n_train_tokens += info.length;
    });
    return sizes;
}

std::vector<WindowRef> Corpus::windows_of(const std::vector<IndexedSequence>& sequences) const {
    std::vector<WindowRef> refs;
    for_each_mask(sequences, [&](const IndexedSequence& s, std::span<const std::uint8_t> mask) {
        const auto prompt = s.info.prompt_length;
        if (prompt >= 1 && prompt < s.info.length && mask[static_cast<std::size_t>(prompt)] != 1) {
            throw input_error(
                "prompt_length is {}, where no masked stretch starts - {}:/sequences/prompt_length, sequence {} - "
                "the file was not written by `hetlora prepare`; prepare it again",
                prompt, file_.path().string(), s.sequence);
        }
        std::int64_t n_loss = 0;
        const std::vector<Window> windows = list_windows(mask, shape_);
        if (options_.classification) check_labelled(s, windows);
        for (const Window& w : windows) {
            refs.push_back({.sequence = s.sequence, .window = w.window, .rows = w.rows, .n_loss = w.n_loss});
            n_loss += w.n_loss;
        }
        if (s.info.n_loss >= 0 && s.info.n_loss != n_loss) {
            throw input_error(
                "n_loss is {}, but the mask has {} loss tokens - {}:/sequences/n_loss, sequence {} - the file is "
                "damaged or was not written by `hetlora prepare`; prepare it again",
                s.info.n_loss, n_loss, file_.path().string(), s.sequence);
        }
    });
    return refs;
}

const std::vector<WindowRef>& Corpus::cached_train_windows(std::int64_t client) const {
    if (const auto found = cache_.find(client); found != cache_.end()) return found->second;
    auto refs = windows_of(sequences_of(client, Part::train));
    const auto limit = static_cast<std::size_t>(options_.max_windows_per_client);
    if (limit > 0 && refs.size() > limit) refs.resize(limit);
    while (!cache_order_.empty() && cached_windows_ + refs.size() > max_cached_windows) {
        const auto oldest = cache_.find(cache_order_.front());
        cached_windows_ -= oldest->second.size();
        cache_.erase(oldest);
        cache_order_.pop_front();
    }
    cached_windows_ += refs.size();
    cache_order_.push_back(client);
    return cache_.emplace(client, std::move(refs)).first->second;
}

std::vector<WindowRef> Corpus::train_windows(std::int64_t client) const { return cached_train_windows(client); }

std::int64_t Corpus::n_train_windows(std::int64_t client) const {
    check_client(client);
    if (!counts_.empty()) return counts_[static_cast<std::size_t>(client)];
    return static_cast<std::int64_t>(cached_train_windows(client).size());
}

void Corpus::check_labelled(const IndexedSequence& s, std::span<const Window> windows) const {
    if (s.info.label < 0) {
        throw input_error(
            "{}: sequence {} has no label, and model.task = classification learns labels: prepare the "
            "data again with --task classification and --label-field",
            file_.path().string(), s.sequence);
    }
    if (s.info.length - 1 > shape_.length) {
        throw input_error(
            "{}: sequence {} has {} tokens, more than data.sequence_length = {}: a text is judged whole; raise it, or "
            "prepare the data again with shorter texts",
            file_.path().string(), s.sequence, s.info.length - 1, shape_.length);
    }
    if (windows.size() != 1 || windows.front().n_loss != 1) {
        throw input_error(
            "{}: sequence {} carries loss on other tokens than its last: prepare the data again with "
            "`hetlora prepare ... --task classification`",
            file_.path().string(), s.sequence);
    }
}

WindowTokens Corpus::read(const WindowRef& ref) const {
    const IndexRange place = file_.place(ref.sequence);
    const IndexRange stretch = window_stretch(place.size(), ref.window, shape_);
    WindowTokens window = cut_window(file_.read(ref.sequence, place, stretch), ref.window, shape_);
    if (options_.classification) {
        const std::int32_t label = file_.sequence(ref.sequence).label;
        for (std::int32_t& target : window.targets) {
            if (target >= 0) target = label;
        }
    }
    return window;
}

}  // namespace hetlora
