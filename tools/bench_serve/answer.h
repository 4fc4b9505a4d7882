#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace quicksilver {

/// Text of an answer that arrived at once.
struct TextPiece {
  double seconds = 0.0;  ///< From the start of the request.
  uint32_t bytes = 0;
  int32_t block = -1;  ///< -1: the server does not say.
};

enum class Outcome { kOk, kRejected, kFailed };

/// What became of one request. Times are seconds; `start` counts from the start of the run, the others from `start`.
struct RequestRecord {
  Outcome outcome = Outcome::kFailed;
  int status = 0;  ///< HTTP; 0: no answer.
  std::string error;
  double start = 0.0;
  double end = 0.0;
  std::vector<TextPiece> pieces;  ///< In order of arrival; none of them is empty.
  uint64_t prompt_tokens = 0;     ///< As the server counts, else as the data set does.
  uint64_t output_tokens = 0;     ///< As the server counts, else a guess from the text.
  uint64_t cached_tokens = 0;     ///< Of the prompt.
  uint64_t forwards = 0;          ///< 0: the server does not say.
  uint64_t resumed = 0;           ///< How often it went on after a loss.
  std::string finish_reason;      ///< Of the choice that ended last.
  std::string text;               ///< Kept on request only.

  double TimeToFirstToken() const { return pieces.front().seconds; }  ///< Requires: pieces is not empty.
};

/// Reads the answer to a completion or chat request, streamed or whole, into a record. Tolerates what it does not know.
class AnswerReader {
 public:
  static constexpr size_t kErrorBytesMax = 512;

  /// `record` outlives this. `keep_text`: record.text is wanted.
  AnswerReader(RequestRecord& record, bool keep_text) : record_(&record), keep_text_(keep_text) {}

  /// The data of one event that arrived at `seconds`.
  void OnEvent(std::string_view data, double seconds);
  /// A body that is not a stream: the whole answer, or an error.
  void OnBody(int status, std::string_view body, double seconds);
  /// The response has ended: fixes the outcome.
  void Finish(int status, double seconds);

  bool done() const { return done_; }  ///< [DONE] was seen.

 private:
  void TakeText(std::string_view text, int32_t block, double seconds);
  void Fail(std::string_view message);

  RequestRecord* record_;
  bool keep_text_;
  bool done_ = false;
  bool has_usage_ = false;
  uint64_t text_bytes_ = 0;
};

}  // namespace quicksilver
