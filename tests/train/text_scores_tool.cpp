// Scores pairs of texts for tests/python/test_text_scores.py: a line of JSON [real, generated] in, one of
// [rouge1, rougeL, exact match] out.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "hetlora/train/text_scores.hpp"

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        const auto pair = nlohmann::json::parse(line).get<std::vector<std::string>>();
        const nlohmann::json scores{hetlora::rouge1(pair.at(0), pair.at(1)), hetlora::rouge_l(pair.at(0), pair.at(1)),
                                    hetlora::exact_match(pair.at(0), pair.at(1))};
        std::cout << scores.dump() << '\n';
    }
    return 0;
}
