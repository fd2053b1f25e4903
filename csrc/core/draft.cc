#include "core/draft.h"

#include "core/check.h"

namespace simplear {

void extend_drafts(DraftSource source, int32_t width, const std::vector<int32_t>& codes, std::vector<int32_t>& drafts,
                   int32_t count) {
  if (codes.empty()) return;
  const auto known = static_cast<int32_t>(codes.size());
  const auto token = [&](int32_t position) { return position < known ? codes[position] : drafts[position - known]; };
  while (static_cast<int32_t>(drafts.size()) < count) {
    const int32_t position = known + static_cast<int32_t>(drafts.size());
    const bool above = source == DraftSource::kAbove && width > 0 && position >= width;
    drafts.push_back(token(position - (above ? width : 1)));
  }
}

int32_t accepted_length(const std::vector<int32_t>& drafts, const std::vector<int32_t>& drawn) {
  check(drawn.size() == drafts.size() + 1, ErrorKind::kInternal, "verification: ", drafts.size(), " drafts, ",
        drawn.size(), " drawn tokens");
  int32_t length = 1;
  while (length <= static_cast<int32_t>(drafts.size()) && drafts[length - 1] == drawn[length - 1]) ++length;
  return length;
}

}  // namespace simplear
