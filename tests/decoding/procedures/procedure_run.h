#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "tests/decoding/procedures/fake_model.h"
#include "worker/decoding/procedure.h"

namespace quicksilver {

/// The logits of a row of a canvas.
using Network = std::function<std::vector<float>(absl::Span<const TokenId> tokens, const RowAsk& row)>;

/// Runs a procedure over a canvas as a sequence would, and holds it to its contract at every step.
class ProcedureRun {
 public:
  struct Canvas {
    int32_t prompt = 3;
    int32_t answer = 16;               ///< Positions after the prompt.
    int32_t block_length = 8;          ///< Counted from `origin`.
    int32_t origin = 3;                ///< The prompt's end, or 0: the prompt's tail then shares the first block.
    std::map<int32_t, TokenId> fixed;  ///< By position; of the answer.
    std::map<int32_t, TokenId> draft;
    SamplingRule sampling;
    int32_t commits_min = 0;
  };

  ProcedureRun(Procedure& procedure, const Canvas& canvas, Network network);

  /// One forward. False when the answer is done. The answer's tokens after it are in tokens().
  bool Step();
  /// Steps until the answer is done, each canvas of the way; nothing more after a broken contract.
  std::vector<std::vector<TokenId>> RunToEnd();

  const std::vector<TokenId>& tokens() const { return tokens_; }
  const Decision& decision() const { return decision_; }  ///< Of the last step.
  int32_t forwards() const { return view_.forwards; }
  CanvasView View() const;
  bool done() const { return done_; }

 private:
  void Open(int32_t block, int32_t first);
  void CloseBlocks();
  void Write();
  bool IsClean() const;
  bool IsDecided() const;

  Procedure& procedure_;
  const Canvas canvas_;
  const Network network_;
  std::vector<TokenId> tokens_;
  std::vector<uint8_t> fixed_;
  std::map<int32_t, std::vector<float>> history_;
  CanvasView view_;
  Decision decision_;
  bool done_ = false;
};

/// The network of `model`.
Network NetworkOf(const FakeModel& model);

}  // namespace quicksilver
