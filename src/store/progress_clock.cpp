// See hetlora/store/progress_clock.hpp.
#include "hetlora/store/progress_clock.hpp"

#include <array>
#include <ctime>

namespace hetlora {

std::string utc_now() {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    ::gmtime_r(&now, &parts);
    std::array<char, 32> text{};
    const std::size_t length = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
    return {text.data(), length};
}

}  // namespace hetlora
