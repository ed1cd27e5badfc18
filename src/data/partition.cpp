// Dealing sequences to simulated clients; the rules are in partition.hpp.
#include "hetlora/data/partition.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"

namespace hetlora {
namespace {

// First coordinate of every hash here, so that the draws for different things never coincide.
enum Draw : int { deal_order = 1, gamma_normal = 2, gamma_accept = 3, gamma_boost = 4, quantity_normal = 5 };

constexpr double most_sigma = 20.0;  // one client has everything long before

/// log of a Gamma(alpha, 1) variate.
double log_gamma_variate(std::int32_t label, std::int64_t client, const DealOptions& options) {
    const auto bits = [&](Draw draw, int attempt) {
        return hash_seed(options.seed, Purpose::partition, static_cast<int>(draw), label, client, attempt);
    };
    const double alpha = options.dirichlet_alpha;
    const double shape = alpha < 1.0 ? alpha + 1.0 : alpha;
    const double boost = alpha < 1.0 ? std::log(1.0 - uniform01(bits(gamma_boost, 0))) / alpha : 0.0;
    const double d = shape - 1.0 / 3.0;
    const double c = 1.0 / std::sqrt(9.0 * d);
    for (int attempt = 0;; ++attempt) {
        const double x = standard_normal(bits(gamma_normal, attempt));
        const double cube_root = 1.0 + c * x;
        if (cube_root <= 0.0) continue;
        const double v = cube_root * cube_root * cube_root;
        const double log_u = std::log(1.0 - uniform01(bits(gamma_accept, attempt)));
        if (log_u < 0.5 * x * x + d - d * v + d * std::log(v)) return std::log(d * v) + boost;
    }
}

struct Keyed {
    std::uint64_t key = 0;
    std::int32_t label = 0;
    std::int32_t sequence = 0;
    std::int64_t owner = 0;
};

void assign_iid(std::span<Keyed> hashed, std::int64_t n_clients) {
    for (std::size_t i = 0; i < hashed.size(); ++i) hashed[i].owner = static_cast<std::int64_t>(i) % n_clients;
}

/// Cuts the sequences at the running sums of the shares [n_clients].
void assign_by_shares(std::span<Keyed> hashed, std::span<const double> shares, const DealOptions& options) {
    const auto n = static_cast<double>(hashed.size());
    double cumulative = 0.0;
    std::size_t next = 0;
    for (std::int64_t client = 0; client < options.n_clients; ++client) {
        cumulative += shares[static_cast<std::size_t>(client)];
        // The last client takes what rounding has left: nothing may be lost.
        const bool last = client + 1 == options.n_clients;
        const auto end =
            last ? hashed.size() : std::min(hashed.size(), static_cast<std::size_t>(std::llround(n * cumulative)));
        for (; next < end; ++next) hashed[next].owner = client;
    }
}

}  // namespace

const char* partition_name(PartitionKind kind) noexcept {
    switch (kind) {
        case PartitionKind::natural:
            return "natural";
        case PartitionKind::iid:
            return "iid";
        case PartitionKind::dirichlet:
            return "dirichlet";
        case PartitionKind::quantity:
            return "quantity";
    }
    return "unknown";
}

std::vector<double> dirichlet_shares(std::int32_t label, const DealOptions& options) {
    std::vector<double> shares(static_cast<std::size_t>(options.n_clients));
    double largest = -std::numeric_limits<double>::infinity();
    for (std::int64_t client = 0; client < options.n_clients; ++client) {
        const double log_gamma = log_gamma_variate(label, client, options);
        shares[static_cast<std::size_t>(client)] = log_gamma;
        largest = std::max(largest, log_gamma);
    }
    double sum = 0.0;
    for (double& share : shares) {
        share = std::exp(share - largest);
        sum += share;
    }
    for (double& share : shares) share /= sum;
    return shares;
}

std::vector<double> quantity_shares(const DealOptions& options) {
    std::vector<double> shares(static_cast<std::size_t>(options.n_clients));
    double sum = 0.0;
    for (std::int64_t client = 0; client < options.n_clients; ++client) {
        const auto bits = hash_seed(options.seed, Purpose::partition, static_cast<int>(quantity_normal), 0, client, 0);
        // |z| stays below 9, so that exp overflows only for a sigma above most_sigma.
        sum += shares[static_cast<std::size_t>(client)] = std::exp(options.quantity_sigma * standard_normal(bits));
    }
    for (double& share : shares) share /= sum;
    return shares;
}

Deal deal_sequences(std::span<const LabelledSequence> sequences, Part part, const DealOptions& options) {
    if (options.kind == PartitionKind::natural)
        throw bug_error("partition natural deals nothing - deal_sequences - use the file's clients");
    if (options.n_clients < 1) {
        throw usage_error("partition {} over {} clients - data.partition_clients - give at least 1",
                          partition_name(options.kind), options.n_clients);
    }
    const bool by_label = options.kind == PartitionKind::dirichlet;
    if (by_label && !(options.dirichlet_alpha > 0.0 && std::isfinite(options.dirichlet_alpha))) {
        throw usage_error("alpha is {} - data.dirichlet_alpha - give a number above 0", options.dirichlet_alpha);
    }
    const bool by_size = options.kind == PartitionKind::quantity;
    if (by_size && !(options.quantity_sigma > 0.0 && options.quantity_sigma <= most_sigma)) {
        throw usage_error("sigma is {} - data.quantity_sigma - give a number above 0, at most {}",
                          options.quantity_sigma, most_sigma);
    }

    std::vector<Keyed> hashed;
    hashed.reserve(sequences.size());
    for (const LabelledSequence& s : sequences) {
        const auto key = hash_seed(options.seed, Purpose::partition, static_cast<int>(deal_order),
                                   static_cast<int>(part), s.sequence);
        hashed.push_back({.key = key, .label = by_label ? s.label : 0, .sequence = s.sequence, .owner = 0});
    }
    std::ranges::sort(hashed, [](const Keyed& a, const Keyed& b) {
        if (a.label != b.label) return a.label < b.label;
        return a.key != b.key ? a.key < b.key : a.sequence < b.sequence;
    });
    if (by_size) {
        assign_by_shares(hashed, quantity_shares(options), options);
    } else if (!by_label) {
        assign_iid(hashed, options.n_clients);
    } else {
        for (auto first = hashed.begin(); first != hashed.end();) {
            const auto last =
                std::find_if(first, hashed.end(), [&](const Keyed& k) { return k.label != first->label; });
            assign_by_shares({first, last}, dirichlet_shares(first->label, options), options);
            first = last;
        }
    }

    std::ranges::sort(hashed, [](const Keyed& a, const Keyed& b) {
        return a.owner != b.owner ? a.owner < b.owner : a.sequence < b.sequence;
    });
    Deal deal;
    deal.offset.assign(static_cast<std::size_t>(options.n_clients) + 1, 0);
    for (const Keyed& k : hashed) {
        ++deal.offset[static_cast<std::size_t>(k.owner) + 1];
        deal.sequences.push_back(k.sequence);
    }
    for (std::size_t c = 1; c < deal.offset.size(); ++c) deal.offset[c] += deal.offset[c - 1];
    return deal;
}

}  // namespace hetlora
