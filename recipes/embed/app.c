/* Answer one message with a GGUF file, through llama.cpp's C interface: app MODEL.gguf TEXT
 *
 *   cc app.c -I llama.cpp/include -I llama.cpp/ggml/include -L LIBRARIES -lllama -o app
 *
 * Greedy. The chat template is the file's own, as far as llama.cpp knows it without Jinja (ChatML is known).
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama.h"

enum { N_CTX = 1024, N_NEW = 64 };

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void silent(enum ggml_log_level level, const char *text, void *data) {
    (void) level, (void) text, (void) data;
}

/* The tokens of the rendered chat. */
static int tokenize_chat(const struct llama_model *model, const char *text, llama_token *tokens) {
    struct llama_chat_message message = {"user", text};
    const char *template = llama_model_chat_template(model, NULL);
    if (template == NULL) fail("the file has no chat template");
    int room = 4096 + 2 * (int) strlen(text);
    char *prompt = malloc(room);
    int length = llama_chat_apply_template(template, &message, 1, true, prompt, room);
    if (length < 0 || length > room) fail("llama.cpp does not know this chat template without Jinja");
    int n = llama_tokenize(llama_model_get_vocab(model), prompt, length, tokens, N_CTX, false, true);
    free(prompt);
    if (n <= 0) fail("the message does not fit the context");
    return n;
}

int main(int argc, char **argv) {
    if (argc != 3) fail("usage: app MODEL.gguf TEXT");
    llama_log_set(silent, NULL);
    llama_backend_init();
    struct llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    struct llama_model *model = llama_model_load_from_file(argv[1], model_params);
    if (model == NULL) fail("llama.cpp refused the file");
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = N_CTX;
    params.n_threads = params.n_threads_batch = 1;
    struct llama_context *context = llama_init_from_model(model, params);
    if (context == NULL) fail("no context");
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    struct llama_sampler *greedy = llama_sampler_init_greedy();

    llama_token tokens[N_CTX];
    int n = tokenize_chat(model, argv[2], tokens);
    struct llama_batch batch = llama_batch_get_one(tokens, n);
    for (int i = 0; i < N_NEW && n + i < N_CTX; i++) {
        if (llama_decode(context, batch) != 0) fail("llama.cpp did not run the tokens");
        tokens[0] = llama_sampler_sample(greedy, context, -1);
        if (llama_vocab_is_eog(vocab, tokens[0])) break;
        char piece[256];
        int length = llama_token_to_piece(vocab, tokens[0], piece, sizeof piece, 0, false);
        fwrite(piece, 1, length > 0 ? length : 0, stdout);
        batch = llama_batch_get_one(tokens, 1);
    }

    llama_sampler_free(greedy);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
