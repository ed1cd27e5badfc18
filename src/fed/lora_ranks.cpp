#include "hetlora/fed/lora_ranks.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

#include "hetlora/base/error.hpp"
#include "hetlora/base/random.hpp"
#include "hetlora/base/text.hpp"

namespace hetlora {

namespace {

void check_bounds(const LoraRankLaw& law) {
    if (law.rank_min < 1 || law.rank_max < law.rank_min) {
        throw usage_error("lora.rank_min = {} and lora.rank_max = {} - ranks need 1 <= rank_min <= rank_max",
                          law.rank_min, law.rank_max);
    }
}

double check_power(const LoraRankLaw& law) {
    const bool unit = law.distribution == RankDistribution::powerlaw_unit;
    if (!std::isfinite(law.power) || (unit && law.power <= 0)) {
        throw usage_error("lora.rank_power = {} with lora.rank_distribution = {} - it needs a {} number (0.1 is usual)",
                          law.power, name_of(law.distribution), unit ? "positive" : "finite");
    }
    return law.power;
}

void check_rank(const LoraRankLaw& law, std::int64_t lora_rank, const std::string& where) {
    if (lora_rank < law.rank_min || lora_rank > law.rank_max) {
        throw usage_error(
            "{}: lora_rank {} is outside [lora.rank_min, lora.rank_max] = [{}, {}] - change it or the bounds", where,
            lora_rank, law.rank_min, law.rank_max);
    }
}

std::vector<std::int64_t> ranks_from_list(const LoraRankLaw& law, std::int64_t n_clients) {
    if (law.list.empty()) {
        throw usage_error("lora.rank_distribution = list but lora.rank_list is empty - give ranks such as 4,8,16");
    }
    std::vector<std::int64_t> ranks;
    for (std::int64_t client = 0; client < n_clients; ++client) {
        const auto entry = static_cast<std::size_t>(client) % law.list.size();
        check_rank(law, law.list[entry], fmt::format("lora.rank_list, entry {}", entry + 1));
        ranks.push_back(law.list[entry]);
    }
    return ranks;
}

std::vector<std::int64_t> ranks_from_file(const LoraRankLaw& law, std::int64_t n_clients) {
    std::ifstream file(law.file);
    if (!file) {
        throw input_error("lora.rank_file: cannot read {} - check the path (one integer per line, one line per client)",
                          law.file.string());
    }
    std::vector<std::int64_t> ranks;
    std::string line;
    for (std::int64_t number = 1; std::getline(file, line); ++number) {
        const auto text = trim(std::string_view(line).substr(0, line.find('#')));
        if (text.empty()) continue;
        const auto value = parse_integer(text);
        if (!value) {
            throw input_error("{}:{}: \"{}\" is not an integer - write one lora_rank per line", law.file.string(),
                              number, text);
        }
        check_rank(law, *value, fmt::format("{}:{}", law.file.string(), number));
        ranks.push_back(*value);
    }
    if (std::ssize(ranks) != n_clients) {
        throw input_error("{}: {} lora_ranks for {} clients - write exactly one line per registered client",
                          law.file.string(), ranks.size(), n_clients);
    }
    return ranks;
}

}  // namespace

LoraRankLaw lora_rank_law(const Settings& settings) {
    return {.distribution = settings.lora.rank_distribution,
            .rank_min = settings.lora.rank_min,
            .rank_max = settings.lora.rank_max,
            .power = settings.lora.rank_power,
            .list = settings.lora.rank_list,
            .file = settings.lora.rank_file,
            .seed_ranks = settings.experiment.seed_ranks};
}

std::vector<double> lora_rank_probabilities(const LoraRankLaw& law) {
    check_bounds(law);
    std::vector<double> p(static_cast<std::size_t>(law.rank_max - law.rank_min) + 1);
    switch (law.distribution) {
        case RankDistribution::fixed:
            p.back() = 1.0;
            break;
        case RankDistribution::uniform:
            std::ranges::fill(p, 1.0);
            break;
        case RankDistribution::powerlaw: {
            const double exponent = check_power(law) - 1.0;
            for (std::size_t i = 0; i < p.size(); ++i) {
                p[i] = std::pow(static_cast<double>(law.rank_min) + static_cast<double>(i), exponent);
            }
            break;
        }
        case RankDistribution::powerlaw_unit: {
            // P(x <= t) = t^power, and r = rank_min + i for x in [i, i + 1) / (number of ranks).
            const double power = check_power(law);
            const double n_ranks = static_cast<double>(p.size());
            for (std::size_t i = 0; i < p.size(); ++i) {
                p[i] = std::pow((static_cast<double>(i) + 1.0) / n_ranks, power) -
                       std::pow(static_cast<double>(i) / n_ranks, power);
            }
            break;
        }
        case RankDistribution::list:
        case RankDistribution::file:
            throw bug_error("rank distribution {} has no probabilities", name_of(law.distribution));
    }
    double total = 0.0;
    for (const double value : p) total += value;
    if (!(total > 0.0) || !std::isfinite(total)) {
        throw usage_error(
            "lora.rank_power = {} leaves no rank in [{}, {}] with a usable probability - take it nearer to 0",
            law.power, law.rank_min, law.rank_max);
    }
    for (double& value : p) value /= total;
    return p;
}

std::vector<std::int64_t> draw_lora_ranks(const LoraRankLaw& law, std::int64_t n_clients) {
    check_bounds(law);
    if (law.distribution == RankDistribution::list) return ranks_from_list(law, n_clients);
    if (law.distribution == RankDistribution::file) return ranks_from_file(law, n_clients);

    auto cumulated = lora_rank_probabilities(law);
    for (std::size_t i = 1; i < cumulated.size(); ++i) cumulated[i] += cumulated[i - 1];
    std::vector<std::int64_t> ranks;
    ranks.reserve(static_cast<std::size_t>(n_clients));
    for (std::int64_t client = 0; client < n_clients; ++client) {
        const double u = uniform01(hash_seed(law.seed_ranks, Purpose::lora_rank, client));
        // The first rank whose cumulated probability exceeds u; rounding may leave the last one just below 1.
        const auto found = std::ranges::upper_bound(cumulated, u * cumulated.back());
        const auto index = std::min<std::ptrdiff_t>(found - cumulated.begin(), std::ssize(cumulated) - 1);
        ranks.push_back(law.rank_min + index);
    }
    return ranks;
}

}  // namespace hetlora
