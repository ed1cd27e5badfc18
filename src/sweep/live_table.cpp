// See hetlora/sweep/live_table.hpp.
#include "hetlora/sweep/live_table.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "hetlora/base/text.hpp"

namespace hetlora::sweep {
namespace {

constexpr double redraw_s = 0.5;

struct Size {
    std::size_t rows = 24;
    std::size_t columns = 80;
};

Size screen() {
    winsize size{};
    if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) return {};
    return {.rows = size.ws_row, .columns = size.ws_col};
}

std::string loss_text(const FolderState& state) {
    const double loss = std::isfinite(state.eval_loss) ? state.eval_loss : state.train_loss;
    return std::isfinite(loss) ? fmt::format("{:.4f}", loss) : "-";
}

}  // namespace

LiveTable::LiveTable() : in_place_(::isatty(STDERR_FILENO) == 1) {}

bool LiveTable::is_due() const { return in_place_ && (!drawn_ || since_drawn_.seconds() >= redraw_s); }

void LiveTable::draw(const View& view) {
    if (!in_place_) return;
    const Size size = screen();
    std::vector<std::string> lines = {fmt::format("sweep {}: {}; {} gone, about {} left", view.name,
                                                  counts_text(view.counts), human_seconds(watch_.seconds()),
                                                  human_seconds(view.seconds_left))};
    std::size_t width = 3;
    for (const auto& row : view.running) width = std::max(width, row.name.size());
    const std::size_t room = size.columns > 50 ? size.columns - 42 : 20;
    width = std::min(width, room);
    const std::size_t shown = std::min(view.running.size(), size.rows > 6 ? size.rows - 4 : 2);
    if (shown > 0) lines.push_back(fmt::format("  {:<{}} {:>11} {:>9} {:>12}", "run", width, "round", "loss", "left"));
    for (std::size_t i = 0; i < shown; ++i) {
        const auto& [name, state] = view.running[i];
        lines.push_back(fmt::format("  {:<{}} {:>11} {:>9} {:>12}", name.substr(0, width), width,
                                    fmt::format("{}/{}", state.round, state.rounds), loss_text(state),
                                    std::isfinite(state.seconds_left) ? human_seconds(state.seconds_left) : "-"));
    }
    if (shown < view.running.size()) lines.push_back(fmt::format("  and {} more", view.running.size() - shown));
    clear();
    for (const auto& text : lines) std::fputs((text.substr(0, size.columns - 1) + "\n").c_str(), stderr);
    std::fflush(stderr);
    lines_ = static_cast<int>(lines.size());
    drawn_ = true;
    since_drawn_.lap();
}

void LiveTable::line(const std::string& text) {
    clear();
    std::fputs((text + "\n").c_str(), stderr);
}

void LiveTable::clear() {
    if (lines_ > 0) std::fputs(fmt::format("\x1b[{}A\x1b[J", lines_).c_str(), stderr);
    lines_ = 0;
}

}  // namespace hetlora::sweep
