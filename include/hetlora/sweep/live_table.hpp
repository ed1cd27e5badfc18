// The table that `sweep run` redraws in place, or plain lines where nobody watches.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "hetlora/base/timer.hpp"
#include "hetlora/sweep/report.hpp"
#include "hetlora/sweep/run_state.hpp"

namespace hetlora::sweep {

/// Writes to stderr: a table in place if that is a terminal, else one line for each run that ended.
class LiveTable {
public:
    struct Row {
        std::string name;
        FolderState state;
    };
    struct View {
        std::string name;  ///< of the sweep
        Counts counts{};
        std::vector<Row> running;
        double seconds_left = 0;
    };

    LiveTable();
    explicit LiveTable(bool in_place) : in_place_(in_place) {}
    /// True where it is time to draw again; false always where nothing is drawn in place.
    [[nodiscard]] bool is_due() const;
    void draw(const View& view);
    /// One finished run, or another message, above the table.
    void line(const std::string& text);
    /// Takes the table off the screen.
    void clear();

private:
    bool in_place_;
    bool drawn_ = false;
    int lines_ = 0;
    Stopwatch since_drawn_;
    Stopwatch watch_;
};

}  // namespace hetlora::sweep
