// What a Corpus evaluates on, and that nobody trains on it.
#include <algorithm>
#include <unordered_set>

#include "corpus_scan.hpp"
#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"
#include "hetlora/data/corpus.hpp"

namespace hetlora {
namespace {

constexpr std::ptrdiff_t evaluation_block = 1 << 12;  // sequences whose evaluation windows are listed at once

}  // namespace

std::vector<WindowRef> Corpus::evaluation_windows(Part part, std::int64_t n, std::uint64_t seed) const {
    if (part == Part::train) throw usage_error("evaluation on the training part - evaluation.part - use valid or test");
    struct Keyed {
        std::uint64_t key;
        WindowRef ref;
    };
    const auto by_place = [](const Keyed& k) { return std::pair(k.ref.sequence, k.ref.window); };
    const auto by_key = [&](const Keyed& a, const Keyed& b) {
        return a.key != b.key ? a.key < b.key : by_place(a) < by_place(b);
    };
    std::vector<Keyed> chosen;
    const auto keep_smallest = [&] {  // with 0 < n, more than n are in memory only until the next call
        if (n <= 0 || std::ssize(chosen) <= n) return;
        std::ranges::nth_element(chosen, chosen.begin() + n, by_key);
        chosen.resize(static_cast<std::size_t>(n));
    };
    std::vector<IndexedSequence> block;
    const auto choose_from_block = [&] {
        for (const WindowRef& ref : windows_of(block))
            chosen.push_back({hash_seed(seed, Purpose::evaluation_subset, ref.sequence, ref.window), ref});
        block.clear();
        keep_smallest();
    };
    for_each_evaluation_sequence(part, [&](std::int32_t sequence, const SequenceInfo& info) {
        block.push_back({.sequence = sequence, .info = info});
        if (std::ssize(block) == evaluation_block) choose_from_block();
    });
    choose_from_block();
    std::ranges::sort(chosen, {}, by_place);
    std::vector<WindowRef> refs;
    refs.reserve(chosen.size());
    for (const Keyed& k : chosen) refs.push_back(k.ref);
    return refs;
}

std::vector<WindowRef> Corpus::client_evaluation_windows(std::int64_t client, Part part) const {
    if (part == Part::train) throw usage_error("evaluation on the training part - evaluation.part - use valid or test");
    return windows_of(sequences_of(client, part));
}

void Corpus::check_no_leakage() const {
    enum Use : std::uint8_t { unused, trained, evaluated };
    std::vector<std::uint8_t> use(static_cast<std::size_t>(file_.n_sequences()), unused);
    const auto leak = [&](std::int32_t sequence, const std::string& what) {
        return bug_error("sequence {}: {} - data {}, partition {} - do not trust this experiment; report this",
                         sequence, what, file_.path().string(), partition_name(options_.partition));
    };
    for (std::int64_t client = 0; !deals_.empty() && client < n_clients(); ++client) {
        for (const std::int32_t s : deals_[static_cast<std::size_t>(Part::train)].of(client)) {
            auto& used = use[static_cast<std::size_t>(s)];
            if (used != unused) throw leak(s, "two clients train on it");
            used = trained;
        }
    }
    for_each_sequence([&](std::int32_t s, const SequenceInfo& info) {
        auto& used = use[static_cast<std::size_t>(s)];
        // Whose it is in a natural partition is one number in the index: it cannot be two clients'.
        if (deals_.empty() && info.part == Part::train) used = trained;
        if (used != trained) return;
        if (info.part != Part::train) throw leak(s, fmt::format("training data of part {}", part_name(info.part)));
        if (file_.held_out(info.client)) throw leak(s, "its person is held out and trains");
    });
    for (const Part part : {Part::valid, Part::test}) {
        for_each_evaluation_sequence(part, [&](std::int32_t s, const SequenceInfo& info) {
            auto& used = use[static_cast<std::size_t>(s)];
            if (used == trained || info.part != part) throw leak(s, "it is both trained and evaluated on");
            if (!file_.held_out(info.client)) throw leak(s, "the global evaluation uses a person who is not held out");
            used = evaluated;
        });
        for (std::int64_t client = 0; !deals_.empty() && client < n_clients(); ++client) {
            for (const std::int32_t s : deals_[static_cast<std::size_t>(part)].of(client)) {
                if (use[static_cast<std::size_t>(s)] == trained) throw leak(s, "it is both trained and evaluated on");
            }
        }
    }
}

void check_disjoint(std::span<const WindowRef> train, std::span<const WindowRef> evaluation) {
    std::unordered_set<std::int32_t> trained;
    for (const WindowRef& ref : train) trained.insert(ref.sequence);
    for (const WindowRef& ref : evaluation) {
        if (trained.contains(ref.sequence)) {
            throw bug_error(
                "sequence {} (window {}) is both trained and evaluated on - evaluation - do not trust this result; "
                "report this",
                ref.sequence, ref.window);
        }
    }
}

}  // namespace hetlora
