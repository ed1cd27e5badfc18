#include "hetlora/config/strategy_names.hpp"

namespace hetlora {

const std::vector<std::string>& strategy_names() {
    static const std::vector<std::string> names{
        "hetlora",  "hetlora-agg", "zeropad", "fedavg",    "homlora", "fedit", "fedprox",    "rbla",  "replicate",
        "flexlora", "recon-svd",   "hlora",   "raflora",   "rb-lora", "flora", "florist",    "fedex", "ffa",
        "rolora",   "deer",        "fslora",  "fed-plora", "lora-a2", "fedsa", "sa-fedlora", "full"};
    return names;
}

bool has_rank_schedule(const std::string& strategy_name) { return strategy_name == "sa-fedlora"; }

}  // namespace hetlora
