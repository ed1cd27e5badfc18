#include "hetlora/base/terminal.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <iostream>

#include "hetlora/base/text.hpp"

namespace hetlora {
namespace {

// Characters that fit into a line of the terminal; 0 if unknown.
std::size_t terminal_columns() {
    winsize size{};
    return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

}  // namespace

Terminal::Terminal(bool is_root) : Terminal(is_root, std::cout, std::cerr, ::isatty(STDERR_FILENO) == 1) {
    fit_width_ = true;
}

Terminal::Terminal(bool is_root, std::ostream& out, std::ostream& err, bool err_is_terminal)
    : is_root_(is_root), out_(out), err_(err), in_place_(err_is_terminal) {}

Terminal::~Terminal() { end_progress(); }

void Terminal::clear_line() {
    if (!shown_.empty()) err_ << "\r\x1b[K" << std::flush;
}

void Terminal::info(std::string_view message) {
    if (!is_root_) return;
    clear_line();
    out_ << message << '\n' << std::flush;
    err_ << shown_ << std::flush;
}

void Terminal::warn(std::string_view message) {
    if (!is_root_) return;
    clear_line();
    err_ << "warning: " << message << '\n' << shown_ << std::flush;
}

void Terminal::start_progress(std::string_view unit, std::int64_t done) {
    end_progress();
    unit_ = unit;
    first_done_ = done;
    watch_ = Stopwatch{};
}

std::string Terminal::progress_text(const Progress& state) const {
    std::string text = fmt::format("{} {}/{}", unit_, state.done, state.total);
    if (std::isfinite(state.train_loss)) text += fmt::format("  train loss {:.4f}", state.train_loss);
    if (std::isfinite(state.eval_loss)) text += fmt::format("  eval loss {:.4f}", state.eval_loss);
    if (std::isfinite(state.tokens_per_s))
        text += fmt::format("  {} {}/s", human_count(state.tokens_per_s), state.tokens);
    const auto n_timed = state.done - first_done_;
    if (n_timed > 0 && state.total >= state.done) {
        const double per_round_s = watch_.seconds() / static_cast<double>(n_timed);
        text += fmt::format("  {}/{}", human_seconds(per_round_s), unit_);
        text += fmt::format("  {} left", human_seconds(per_round_s * static_cast<double>(state.total - state.done)));
    }
    return text;
}

void Terminal::progress(const Progress& state) {
    if (!is_root_) return;
    std::string text = progress_text(state);
    if (in_place_) {
        // A line that wraps could not be redrawn in place.
        const std::size_t columns = fit_width_ ? terminal_columns() : 0;
        if (columns > 1 && text.size() >= columns) text.resize(columns - 1);
        shown_ = text;
        err_ << "\r\x1b[K" << text << std::flush;
    } else {
        err_ << text << '\n' << std::flush;
    }
}

void Terminal::end_progress() {
    if (!shown_.empty()) err_ << '\n' << std::flush;
    shown_.clear();
}

}  // namespace hetlora
